"""What a benchmark run leaves behind: one JSON file with every raw sample and what is needed to understand it later.

Layout (``schema`` is raised whenever a reader of older files would go wrong):

    {"schema": 1, "created": "…Z", "suite": "quick", "commit": "…" | null, "dirty": bool, "arguments": {…},
     "environment": {…}, "complete": bool, "rows": [row, …]}

One row is one side of one problem: ``problem`` (see ``suites.Problem``), ``repeat``, ``side`` (``rnnkern`` or a peer's
name), ``status``, and where ``status`` is "ok": ``samples``, the seconds that one call took, in the order in which they
were taken: sample ``k`` of two sides of the same problem and repeat were taken right after each other; ``calls``, how
many calls one sample is the mean of; ``error``, the deviation that the check found; ``plan``, what rnnkern chose.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1


@dataclass
class Row:
    problem: dict[str, Any]
    side: str
    status: str  # "ok", "wrong" (refused by the check), "failed" (raised), "unsupported"
    repeat: int = 0
    message: str = ""
    samples: list[float] = field(default_factory=list)
    calls: int = 0
    error: float | None = None
    plan: dict[str, Any] | None = None
    useful: float | None = None  # of a padded run: the share that is not padding

    @property
    def key(self) -> str:
        """Rows with the same key are sides of the same problem."""
        return json.dumps(self.problem, sort_keys=True)


@dataclass
class Results:
    suite: str
    arguments: dict[str, Any]
    environment: dict[str, Any]
    commit: str | None
    dirty: bool
    created: str
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def start(cls, suite: str, arguments: dict[str, Any], device: str = "cpu") -> Results:
        commit, dirty = source_version()
        created = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(suite, arguments, environment(device), commit, dirty, created)

    def save(self, path: Path) -> None:
        """Replaces the file in one step, so that an interruption never leaves half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.asdict(row) for row in self.rows]
        content = {"schema": SCHEMA} | vars(self) | {"rows": rows}
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Results:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected results of schema {SCHEMA}, got {content.get('schema')!r}")
        content.pop("schema")
        return cls(**content | {"rows": [Row(**row) for row in content["rows"]]})


# ---------------------------------------------------------------- statistics


def spread(samples: list[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    if len(samples) < 2:
        return samples[0], 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle, high - low


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times as long the other side takes: the median over pairs of samples that were taken together."""
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------- where it ran


def source_version() -> tuple[str | None, bool]:
    """The commit of the checkout that this file lies in, and whether files differ from it; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, False


def environment(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": precision_flags(),
    }
    try:
        import rnnkern

        facts["rnnkern"] = rnnkern.__version__
        facts["build"] = rnnkern.build_info()
    except ImportError as error:
        facts["rnnkern"] = f"not importable: {error}"
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["driver"] = gpu_driver()
    return facts


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return next((v.strip() for k, v in fields.items() if k.strip() in ("model name", "Model")), platform.processor())


def gpu_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def precision_flags() -> dict[str, Any]:
    """The flags that both sides read; they are process-wide, so equal on both."""
    return {
        "cudnn.rnn": torch.backends.cudnn.rnn.fp32_precision,
        "cuda.matmul": torch.backends.cuda.matmul.fp32_precision,
        "mkldnn.rnn": torch.backends.mkldnn.rnn.fp32_precision,
        "mkldnn.matmul": torch.backends.mkldnn.matmul.fp32_precision,
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
