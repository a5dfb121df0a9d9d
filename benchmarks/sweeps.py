"""Times every strategy of a GPU on the problems of a suite: whole calls, and their sweep kernels alone.

    python benchmarks/sweeps.py --suite gpu --out benchmarks/results/gpu/sweeps-h200.json
    python benchmarks/sweeps.py --report benchmarks/results/gpu/sweeps-h200.json

The plan's model (``csrc/core/cuda/costs.h``) is fitted to these times. The report shows, for each sweep of each
problem, the fastest strategy, what the plan's choice takes beside it, and predictions over times. A kernel's time is
the least of three calls under torch's profiler; every result is first compared with the double reference. The file is
written every few problems, so that a run which is ended keeps what it has. Not a comparison with peers: that is
``run.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

import rnnkern
from adapters import rnnkern_layer
from check import compare, expected
from environment import environment, source_version
from results import now
from suites import SUITES, Data, Problem, select
from timing import interleave

PLANNED = "planned"
KERNELS = {"forward_kernel": "forward", "backward_kernel": "backward"}
CALLS = 3
TOGETHER = 8  # problems under one profile
Rows: TypeAlias = list[dict[str, Any]]


@contextmanager
def forced(strategy: str) -> Iterator[None]:
    if strategy == PLANNED:
        yield
        return
    with rnnkern.strategy(strategy):
        yield


class Side:
    """One strategy on one problem."""

    def __init__(self, problem: Problem, strategy: str, call: Callable[[int], list[torch.Tensor]]):
        self.problem, self.strategy, self.call = problem, strategy, call
        self.row: dict[str, Any] = {"problem": problem.as_dict(), "strategy": strategy}

    def __call__(self, i: int) -> list[torch.Tensor]:
        with forced(self.strategy):
            return self.call(i)

    def check(self, data: Data, ours: torch.nn.Module, want: list[torch.Tensor]) -> bool:
        """Whether the strategy does the problem, rightly; the row says why not."""
        try:
            with forced(self.strategy):
                self.row["plan"] = rnnkern_layer.plan(data, ours)
                results = getattr(self.call, "results", list)(self.call(0))
                error, complaint = compare(self.problem, results, want, is_peer=False)
        except ValueError as refusal:
            self.row["refused"] = str(refusal)
            return False
        except RuntimeError as failure:  # of a kernel, or its launch
            self.row["wrong"] = str(failure)
            return False
        self.row |= {"error": error} | ({"wrong": complaint} if complaint else {})
        return not complaint


def timed_sides(problem: Problem, strategies: list[str], budget: float) -> tuple[list[Side], list[Side]]:
    """All, and those that did the problem; these are timed in turn."""
    data = Data(problem, inputs=2)
    want = expected(data)
    ours = rnnkern_layer.make_layer(data)
    call = rnnkern_layer.calls(ours, data)
    sides = [Side(problem, strategy, call) for strategy in strategies]
    with problem.mode_of_torch():
        running = [side for side in sides if side.check(data, ours, want)]
        if running:
            timed = interleave({side.strategy: side for side in running}, device=problem.device, budget=budget)
    for side in running:
        side.row |= {"calls": timed[side.strategy].calls, "samples": timed[side.strategy].samples}
    return sides, running


def kernel_times(sides: list[Side]) -> None:
    """Adds to each row the seconds of its sweep kernels. Between two sides the GPU sleeps, which the profiler shows."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for side in sides:
            torch.cuda._sleep(100)
            with side.problem.mode_of_torch():
                for i in range(CALLS):
                    side(i)
        torch.cuda.synchronize()
    events = [event for event in profile.profiler.kineto_results.events() if "CUDA" in str(event.device_type())]
    events.sort(key=lambda event: event.start_ns())
    part = -1
    for event in events:
        name = event.name()
        if "spin_kernel" in name:
            part += 1
        for kernel, sweep in KERNELS.items():
            if part >= 0 and f"::{kernel}<" in name:
                row = sides[part].row
                row[sweep] = min(row.get(sweep, 1.0), event.duration_ns() / 1e9)


def measure(
    problems: list[Problem], budget: float, seconds: float = math.inf, save: Callable[[Rows], None] = lambda rows: None
) -> Rows:
    """Problems in an order of chance, so that what the time does not reach is spread evenly; ``save`` gets the rows
    every few of them."""
    strategies = [PLANNED, *(name for name in rnnkern.strategies() if name != "simd")]
    problems = random.Random(0).sample(problems, len(problems))
    rows: Rows = []
    start = time.perf_counter()
    for first in range(0, len(problems), TOGETHER):
        running: list[Side] = []
        for problem in problems[first : first + TOGETHER]:
            sides, timed = timed_sides(problem, strategies, budget)
            rows += [side.row for side in sides]
            running += timed
        kernel_times(running)
        save(rows)
        done = min(first + TOGETHER, len(problems))
        print(f"[{done}/{len(problems)}] {time.perf_counter() - start:.0f} s", flush=True)
        if time.perf_counter() - start > seconds:
            break
    return rows


# ---------------------------------------------------------------- report


def sweeps(rows: Rows) -> Iterator[tuple[Problem, str, dict[str, tuple[float, float]]]]:
    """Problem, sweep, and by strategy the measured and the predicted µs a step."""
    problems: dict[str, Rows] = {}
    for row in rows:
        problems.setdefault(json.dumps(row["problem"], sort_keys=True), []).append(row)
    for same in problems.values():
        problem = Problem(**same[0]["problem"])
        for sweep in KERNELS.values():
            times = {
                row["strategy"]: (1e6 * row[sweep] / problem.steps, row["plan"][sweep]["us_per_step"])
                for row in same
                if sweep in row
            }
            if times:
                yield problem, sweep, times


def report(rows: Rows) -> None:
    worst = 1.0
    print(f"{'problem':<40} {'sweep':<8} {'fastest':<19} µs a step, {PLANNED:<8} predicted / measured")
    for problem, sweep, times in sweeps(rows):
        alone = {name: time for name, time in times.items() if name != PLANNED}
        if not alone:
            continue
        fastest = min(alone, key=lambda name: alone[name][0])
        chosen = times.get(PLANNED)
        share = chosen[0] / alone[fastest][0] if chosen else float("nan")
        worst = max(worst, share)
        ratios = "  ".join(f"{name.split(':')[-1]} {there / here:.2f}" for name, (here, there) in alone.items())
        print(f"{problem.name:<40} {sweep:<8} {fastest:<19} {alone[fastest][0]:9.2f}  {share:8.2f}  {ratios}")
    print(f"what the plan takes needs at most {worst:.2f} times what the fastest strategy needs")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="gpu")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds a side for whole calls")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no other problem after so much time")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="print what lies in a file, and measure nothing")
    args = parser.parse_args(arguments)
    if args.report:
        rows = json.loads(args.report.read_text(encoding="utf-8"))["rows"]
        if not all("strategy" in row for row in rows):
            raise SystemExit(f"{args.report}: expected sweeps, got another kind of results")
        report(rows)
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("sweeps.py needs a CUDA device")
    problems = [p for p in select(args.suite, "cuda") if p.mode in ("inference", "training") and p.one_call]
    commit, dirty = source_version()
    head = {"created": now(), "commit": commit, "dirty": dirty, "environment": environment("cuda")}

    def save(rows: Rows) -> None:
        if args.out is None:
            return
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draft = args.out.with_name(args.out.name + ".part")
        lines = ",\n  ".join(map(json.dumps, rows))
        draft.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        os.replace(draft, args.out)

    rows = measure(problems, args.budget, args.seconds, save)
    report(rows)
    return int(any("wrong" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
