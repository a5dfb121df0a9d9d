"""Measures one problem: checks every side against the double reference, then times those that passed, in turn."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapters import Unsupported
from floors import hop_ns
from results import Row, is_ours
from suites import Data, Problem
from timing import LEAST_ROUNDS, PATIENCE, ROUNDS, interleave

POOL = {"cpu": 64e6, "cuda": 256e6}  # bytes of inputs to rotate through: more than a cache holds
MOST_INPUTS = 1024
PADDED = " padded"  # of a side's name: the same layer on a batch that is padded instead of packed


@dataclass
class Limits:
    """How long to measure: ``seconds`` in all; for one problem ``budget`` seconds and ``rounds`` samples a side."""

    seconds: float | None = None
    budget: float = 2.0
    rounds: int = ROUNDS
    least: int = LEAST_ROUNDS
    patience: float = PATIENCE
    shrink: bool = True  # budgets, so that ``seconds`` reach for all problems


class Watch:
    """Knows which side is at work, also for another process: by a file, when this one is killed."""

    SIZE = 4096

    def __init__(self, path: Path | None = None):
        self.side, self.problem = "", ""
        self.map: mmap.mmap | None = None
        if path is not None:
            path.write_bytes(bytes(self.SIZE))
            with path.open("r+b") as file:
                self.map = mmap.mmap(file.fileno(), self.SIZE)

    def __call__(self, side: str) -> None:
        self.side = side
        if self.map is not None:
            words = f"{side}\n{self.problem}\n".encode()
            self.map[: len(words)] = words

    @staticmethod
    def read(path: Path) -> tuple[str, str]:
        """The side and the problem's key; empty when none was at work."""
        words = path.read_bytes()
        side, problem = words.split(b"\n")[:2] if b"\n" in words else (b"", b"")
        return side.decode(), problem.decode()


class Broken(Exception):
    """Nothing more can be measured in this process, which has these rows to keep."""

    def __init__(self, *rows: Row):
        super().__init__(rows[0].message)
        self.rows = rows


def describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def fail(error: Exception, *rows: Row) -> None:
    """Notes the error; raises ``Broken`` when it leaves the GPU unusable for this process."""
    for row in rows:
        row.status, row.message = "failed", describe(error)
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or not the_gpu_answers():
        raise Broken(*rows) from error


def the_gpu_answers() -> bool:
    """Whether later work can succeed: errors in a kernel come as many types, and stay."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def check_sides(problem: Problem, sides: dict, watch: Watch) -> dict[str, Row]:
    """One row a side: ok with its error, or why the side is not timed."""
    from check import FLOPS, compare, expected

    data = Data(problem.shortened(FLOPS[torch.device(problem.device).type]), inputs=2)
    second = 1  # a side that takes the first input for every one would pass with that
    want = expected(data, second)
    rows = {}
    for name, adapter in sides.items():
        row = rows[name] = Row(problem.as_dict(), name, "ok")
        watch(name)
        try:
            if problem.by_transforms and not hasattr(adapter, "BY_TRANSFORMS"):
                raise Unsupported("no ensembles and no per-sample gradients")
            if problem.cells and not hasattr(adapter, "CELLS"):
                raise Unsupported("no cells")
            call = adapter.build(data)
            with problem.mode_of_torch():
                got = getattr(call, "results", list)(call(second))
            row.error, row.message = compare(problem, got, want, not is_ours(name), getattr(adapter, "TOLERANCE", None))
            row.status = "wrong" if row.message else "ok"
        except Unsupported as error:
            row.status, row.message = "unsupported", str(error)
        except Exception as error:
            fail(error, row)
    return rows


def input_count(problem: Problem) -> int:
    one = problem.steps * problem.batch * problem.input_size * getattr(torch, problem.dtype).itemsize
    return max(2, min(MOST_INPUTS, int(POOL[torch.device(problem.device).type] / one)))


def measure(problem: Problem, sides: dict, limits: Limits, watch: Watch | None = None) -> list[Row]:
    """Checks, then times every side that passed. What goes wrong in a side is its row's message."""
    watch = watch or Watch()
    rows = check_sides(problem, sides, watch)
    data = Data(problem, input_count(problem))
    calls: dict[str, Callable[[int], object]] = {}

    def attempt(name: str, action: Callable[[], object]) -> None:
        watch(name)
        try:
            action()
        except (Exception, SystemExit) as error:
            fail(error, rows[name])

    for name in [name for name, row in rows.items() if row.status == "ok"]:
        attempt(name, lambda name=name: calls.update({name: sides[name].build(data)}))
    if "rnnkern" in calls and hasattr(sides["rnnkern"], "plan") and problem.one_call:
        attempt("rnnkern", lambda: setattr(rows["rnnkern"], "plan", sides["rnnkern"].plan(data)))
    if "rnnkern" in calls and problem.packed:  # what the same layer takes when nothing is packed
        name = "rnnkern" + PADDED
        rows[name] = Row(problem.as_dict(), name, "ok", useful=problem.useful)
        padded = Data(replace(problem, packed=False), len(data.inputs))
        attempt(name, lambda: calls.update({name: sides["rnnkern"].build(padded)}))
    shared = torch.device(problem.device).type == "cpu" and torch.get_num_threads() > 1
    before = hop_ns() if shared else None
    time_sides(problem, calls, rows, limits, watch)
    hops = [before, hop_ns()] if shared else None
    for row in rows.values():
        row.hop_ns = hops if row.samples else None
    return list(rows.values())


def time_sides(problem: Problem, calls: dict, rows: dict[str, Row], limits: Limits, watch: Watch) -> None:
    while calls:  # again without the side that raised
        try:
            with problem.mode_of_torch():
                timed = interleave(
                    calls,
                    device=problem.device,
                    budget=limits.budget,
                    rounds=limits.rounds,
                    least=limits.least,
                    patience=limits.patience,
                    turn_to=watch,
                )
        except (Exception, SystemExit) as error:
            del calls[watch.side]
            fail(error, rows[watch.side])
            continue
        for name, one in timed.items():
            rows[name].samples, rows[name].calls = one.samples, one.calls
        return


def measure_or_report(problem: Problem, sides: dict, limits: Limits, watch: Watch) -> list[Row]:
    """What goes wrong outside of the sides (no memory for the reference, say) ends one problem, not the run."""
    watch.problem = Row(problem.as_dict(), "", "").key
    try:
        return measure(problem, sides, limits, watch)
    except Broken:
        raise
    except Exception as error:
        rows = [Row(problem.as_dict(), name, "failed") for name in sides]
        fail(error, *rows)
        return rows
    finally:
        watch("")
