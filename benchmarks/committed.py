"""The results that lie in ``benchmarks/results``: what README and GOALS.md are made of."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import floors
from results import Results, Row, by_problem
from suites import Problem

FOLDER = Path(__file__).parent / "results"


@dataclass
class Run:
    """One suite or a part of it, on one machine with one number of threads; files of the same code are repeats."""

    results: Results
    files: list[str]

    @property
    def suite(self) -> str:
        return self.results.suite

    @property
    def device(self) -> str:
        return "cuda" if self.results.environment.get("gpu") else "cpu"

    @property
    def machine(self) -> str:
        return self.results.machine

    @property
    def threads(self) -> int:
        return self.results.environment["threads"]

    @property
    def what(self) -> str:
        """The suite, and what picked a part of it."""
        only, mode, dtype = (self.results.arguments.get(name) for name in ("only", "mode", "dtype"))
        parts = {"--mode": mode if mode != "all" else None, "--dtype": dtype, "--only": only and f"'{only}'"}
        return " ".join([self.suite, *(f"{option} {value}" for option, value in parts.items() if value)])

    @property
    def where(self) -> str:
        return self.results.where

    @property
    def name(self) -> str:  # of two machines too they differ
        return Path(self.files[0]).stem

    def problems(self) -> Iterator[tuple[Problem, dict[str, list[Row]]]]:
        for sides in by_problem(self.results.rows).values():
            yield Problem(**next(iter(sides.values()))[0].problem), sides


def merged(found: list[Results]) -> Results:
    """All rows as repeats of one run."""
    rows, offset = [], 0
    for one in found:
        rows += [replace(row, repeat=row.repeat + offset) for row in one.rows]
        offset = 1 + max((row.repeat for row in rows), default=-1)
    limits = functools.reduce(floors.best, (one.limits for one in found))
    return replace(found[0], rows=rows, limits=limits, complete=all(one.complete for one in found))


def runs(folder: Path = FOLDER) -> list[Run]:
    """Of every suite and part of one, machine and number of threads the newest code's; complete ones come first."""
    groups: dict[tuple, dict[str, list[tuple[Path, Results]]]] = {}
    for path in sorted(folder.glob("*.json")):
        one = Results.load(path)
        facts = one.environment
        part = [one.arguments.get(name) for name in ("only", "dtype", "mode")]
        kind = (one.suite, *part, one.machine, facts["threads"])
        version = [facts.get("code") or one.commit, *map(facts.get, ("torch", "precision", "variables"))]
        groups.setdefault(kind, {}).setdefault(str(version), []).append((path, one))
    found = []
    for versions in groups.values():
        newest = max(versions.values(), key=lambda files: max((one.complete, one.created) for _, one in files))
        found.append(Run(merged([one for _, one in newest]), [path.name for path, _ in newest]))
    return sorted(found, key=lambda run: (run.device, run.suite, run.threads))
