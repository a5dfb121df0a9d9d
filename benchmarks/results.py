"""What a benchmark run leaves behind: one JSON file with every raw sample and what is needed to understand it later.

Layout (``schema`` is raised whenever a reader of older files would go wrong):

    {"schema": 2, "created": "…Z", "suite": "quick", "commit": "…" | null, "dirty": bool, "arguments": {…},
     "plan": {…}, "environment": {…}, "limits": {…}, "sittings": [{…}], "complete": bool, "rows": [row, …]}

``limits`` is what this machine can do (see ``floors.py``); ``sittings`` has one entry a process that measured.

One row is one side of one problem: ``problem`` (see ``suites.Problem``), ``repeat``, the number of the process that
measured it, ``sitting``, ``side`` (``rnnkern`` or a peer's name), ``status``, and where that is "ok": ``samples``, the
seconds that one call took, in the order in which they were taken: sample ``k`` of two sides of the same problem and
repeat were taken right after each other; ``calls``, how many calls one sample is the mean of; ``error``, the deviation
that the check found; ``plan``, what rnnkern chose; ``hop_ns``, on a CPU with several threads, how far apart two cores
were before and after (see ``floors.hop_ns``).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import environment, source_version
from stats import Ratio, ratio
from suites import Problem

SCHEMA = 2
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Problem)}
# What two sittings of one run must have in common; the commit may move on as long as the code is the same.
SAME = ("cpu", "gpu", "cores", "threads", "torch", "peers", "precision", "code", "runner", "variables", "cuda", "cudnn")


@dataclass
class Row:
    problem: dict[str, Any]
    side: str
    status: str  # "ok", "wrong" (refused by the check), "failed" (raised), "unsupported"
    repeat: int = 0
    sitting: int = 0
    message: str = ""
    samples: list[float] = field(default_factory=list)
    calls: int = 0
    error: float | None = None
    plan: dict[str, Any] | None = None
    useful: float | None = None  # of a padded run: the share that is not padding
    hop_ns: list[float | None] | None = None

    @property
    def key(self) -> str:
        """Rows with the same key are sides of the same problem. What is as by default is left out: older results do
        not have all of a problem's members."""
        own = {name: value for name, value in self.problem.items() if value != DEFAULTS.get(name)}
        return json.dumps(own, sort_keys=True)


# Names of the processors that a virtual machine gives by their numbers.
CORES = {
    "AMD EPYC family 25 model 1": "Zen 3",
    "AMD EPYC family 25 model 17": "Zen 4",
    "AMD EPYC family 26 model 2": "Zen 5",
    "Intel(R) Xeon(R) Processor family 6 model 207": "Emerald Rapids",
}


@dataclass
class Results:
    suite: str
    arguments: dict[str, Any]
    environment: dict[str, Any]
    commit: str | None
    dirty: bool
    created: str
    limits: dict[str, Any] = field(default_factory=dict)
    sittings: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def start(cls, suite: str, arguments: dict[str, Any], device: str = "cpu") -> Results:
        commit, dirty = source_version()
        started = cls(suite, arguments, environment(device), commit, dirty, now())
        started.sit()
        return started

    def sit(self) -> None:
        """Notes that this process goes on with the run."""
        commit, dirty = source_version()
        self.sittings.append({"created": now(), "load": os.getloadavg()[0], "commit": commit, "dirty": dirty})

    def differs(self, suite: str, arguments: dict[str, Any], device: str = "cpu") -> str:
        """Why a run with these arguments, here and now, cannot go on with this one; empty: it can."""
        here, there = environment(device), self.environment
        pairs = [("suite", self.suite, suite)]
        pairs += [(name, self.arguments.get(name), value) for name, value in arguments.items()]
        pairs += [(name, there.get(name), here.get(name)) for name in SAME]
        words = [f"{name} was {before}, is {after}" for name, before, after in pairs if before != after]
        return "; ".join(dict.fromkeys(words))

    @property
    def machine(self) -> str:
        return self.environment.get("gpu") or self.environment["cpu"]

    @property
    def where(self) -> str:
        """The machine, and on a CPU how many of its threads."""
        cpu, threads = self.environment["cpu"], self.environment["threads"]
        return self.environment.get("gpu") or f"{CORES.get(cpu, cpu)}, {threads} thread{'s' if threads > 1 else ''}"

    @property
    def version(self) -> str:
        return f"{(self.commit or 'unknown')[:10]}{' with changes' if self.dirty else ''}"

    def save(self, path: Path) -> None:
        """Replaces the file in one step, so that an interruption never leaves half of one. One row is one line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema": SCHEMA} | {name: value for name, value in vars(self).items() if name != "rows"}
        head = json.dumps(content, indent=1, default=str).removesuffix("\n}")
        rows = ",\n  ".join(json.dumps(dataclasses.asdict(row)) for row in self.rows)
        draft = path.with_name(path.name + ".part")
        draft.write_text(f'{head},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Ends the program with one line where the file is none of results."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content.pop("schema", None)
            if schema != SCHEMA:
                raise ValueError(f"expected results of schema {SCHEMA}, got {schema}")
            content["rows"] = [Row(**row) for row in content["rows"]]
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SystemExit(f"{path}: not a file of results: {error}") from error


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def by_problem(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """key of the problem → side → its rows, one a repeat."""
    problems: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        problems.setdefault(row.key, {}).setdefault(row.side, []).append(row)
    return problems


def samples(rows: list[Row]) -> list[float]:
    return [s for row in rows for s in row.samples]


def faster(ours: list[Row], theirs: list[Row]) -> Ratio | None:
    """How many times faster than the other side; over the repeats in which both were measured."""
    other = {row.repeat: row for row in theirs if row.samples}
    return ratio([(row.samples, other[row.repeat].samples) for row in ours if row.samples and row.repeat in other])


def bad(rows: list[Row]) -> str:
    """How a side failed in any of its processes; empty where it did not."""
    return next((row.status for row in rows if row.status in ("wrong", "failed")), "")


BETTER_OF = ("torch.nn", "onnxruntime")  # the peers that do the same work in the same precision everywhere


def against_better(sides: dict[str, list[Row]]) -> tuple[Ratio, str] | None:
    """How many times faster than the better of those peers, and which that is; None where one is missing or failed."""
    on_cpu = any(row.problem["device"] == "cpu" for row in sides.get("rnnkern", []))
    if on_cpu and any(peer not in sides for peer in BETTER_OF):
        return None
    if any(bad(sides.get(side, [])) for side in ("rnnkern", *BETTER_OF)):
        return None
    found = [(faster(sides.get("rnnkern", []), sides[peer]), peer) for peer in BETTER_OF if peer in sides]
    return min(((ratio, peer) for ratio, peer in found if ratio), key=lambda one: one[0].value, default=None)


def is_ours(side: str) -> bool:
    return side.startswith("rnnkern")
