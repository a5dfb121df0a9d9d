"""What a goal is, and what can be measured of a problem that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from committed import Run
from floors import floor
from results import Row, against_better, bad, faster, samples
from stats import spread
from suites import Problem

Sides = dict[str, list[Row]]


@dataclass(frozen=True)
class Case:
    """One problem of one run."""

    problem: Problem
    sides: Sides
    run: Run

    @property
    def failed(self) -> bool:
        """Whether our results were refused, or there were none."""
        return bool(bad(self.sides.get("rnnkern", [])))

    @property
    def seconds(self) -> float | None:
        return median(self.sides.get("rnnkern", []))


@dataclass(frozen=True)
class Goal:
    """``value`` of every case that ``about`` picks is to be at least ``least``, or at most ``most``."""

    work: str
    wanted: str
    about: Callable[[Case], bool]
    value: Callable[[Case], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = "×"

    @property
    def missed(self) -> float:
        """The value of what failed."""
        return 0.0 if self.least is not None else float("inf")

    def met(self, value: float) -> bool:
        return value >= self.least if self.least is not None else value <= self.most


def median(rows: list[Row]) -> float | None:
    return spread(samples(rows))[0] if samples(rows) else None


# ---------------------------------------------------------------- what is measured of a case


def against(peer: str, side: str = "rnnkern") -> Callable[[Case], float | None]:
    def value(case: Case) -> float | None:
        ratio = faster(case.sides.get(side, []), case.sides.get(peer, []))
        return ratio.value if ratio else None

    return value


def better(case: Case) -> float | None:
    """× faster than the better of torch.nn and ONNX Runtime."""
    found = against_better(case.sides)
    return found[0].value if found else None


def surely(case: Case) -> float | None:
    """The lower end of that ratio's interval; None where too few pairs were measured to say."""
    found = against_better(case.sides)
    return found[0].low if found and found[0].enough else None


def times_floor(case: Case) -> float | None:
    """Of the floor whose products run in turn with the time loop. None too where less than the hardware needs was
    measured: then the machine did more than what was measured of it.
    """
    least, in_turn = (floor(case.problem, case.run.results.limits, turns) for turns in (False, True))
    return case.seconds / in_turn if least and in_turn and case.seconds and case.seconds >= least else None


def microseconds(case: Case) -> float | None:
    return 1e6 * case.seconds / case.problem.steps if case.seconds else None


def against_padded(case: Case) -> float | None:
    """Our packed time over our padded time × the useful fraction."""
    ratio = faster(case.sides.get("rnnkern padded", []), case.sides.get("rnnkern", []))
    return ratio.value / case.problem.useful if ratio else None


def against_float32(case: Case) -> float | None:
    """Our own float32 time over this; from one run, though not from pairs."""
    plain = replace(case.problem, dtype="float32")
    for problem, sides in case.run.problems():
        if problem == plain and case.seconds and (other := median(sides.get("rnnkern", []))):
            return other / case.seconds
    return None
