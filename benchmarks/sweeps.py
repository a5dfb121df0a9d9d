"""Times every strategy of a GPU on the problems of a suite: whole calls, and their sweep kernels alone.

    python benchmarks/sweeps.py --suite gpu --out benchmarks/results/gpu/sweeps-h200.json
    python benchmarks/sweeps.py --report benchmarks/results/gpu/sweeps-h200.json

The plan's model (``csrc/core/cuda/costs.h``) is fitted to these times. The report shows, for each sweep of each
problem, the fastest strategy, what the plan's choice takes beside it, and predictions over times. A kernel's time is
the least of three calls under torch's profiler; every result is first compared with the double reference. Not a
comparison with peers: that is ``run.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import rnnkern
from adapters import layer, rnnkern_layer
from check import compare, expected
from environment import environment, source_version
from results import now
from suites import SUITES, Data, Problem, select
from timing import interleave

PLANNED = "planned"
KERNELS = {"forward_kernel": "forward", "backward_kernel": "backward"}
CALLS = 3


@contextmanager
def forced(strategy: str) -> Iterator[None]:
    if strategy == PLANNED:
        yield
        return
    with rnnkern.strategy(strategy):
        yield


class Side:
    """One strategy on one problem."""

    def __init__(self, data: Data, strategy: str):
        self.problem, self.strategy = data.problem, strategy
        self.row: dict[str, Any] = {"problem": data.problem.as_dict(), "strategy": strategy}
        self.call = self.calls(data)

    def calls(self, data: Data) -> Callable[[int], list[torch.Tensor]]:
        ours = rnnkern_layer.make_layer(data)
        return getattr(layer, self.problem.mode)(ours, data)

    def check(self, data: Data, want: list[torch.Tensor]) -> bool:
        """Whether the strategy does the problem, rightly; the row says why not."""
        try:
            with forced(self.strategy), self.problem.mode_of_torch():
                self.row["plan"] = rnnkern_layer.plan(data)
                error, complaint = compare(self.problem, self.call(0), want, is_peer=False)
        except ValueError as refusal:
            self.row["refused"] = str(refusal)
            return False
        self.row |= {"error": error} | ({"wrong": complaint} if complaint else {})
        return not complaint

    def time(self, budget: float) -> None:
        with forced(self.strategy), self.problem.mode_of_torch():
            timed = interleave({PLANNED: self.call}, device=self.problem.device, budget=budget)[PLANNED]
        self.row |= {"calls": timed.calls, "samples": timed.samples}

    def run(self) -> None:
        with forced(self.strategy), self.problem.mode_of_torch():
            for i in range(CALLS):
                self.call(i)


def kernel_times(sides: list[Side]) -> None:
    """Adds to each row the seconds of its sweep kernels. Between two sides the GPU sleeps, which the profiler shows."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for side in sides:
            torch.cuda._sleep(100)
            side.run()
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


def measure(problems: list[Problem], budget: float) -> list[dict[str, Any]]:
    strategies = [name for name in rnnkern.strategies() if name != "simd"]
    rows, running = [], []
    for problem in problems:
        data = Data(problem, inputs=2)
        want = expected(data)
        for strategy in [PLANNED, *strategies]:
            side = Side(data, strategy)
            rows.append(side.row)
            if side.check(data, want):
                side.time(budget)
                running.append(side)
        print(problem.name, flush=True)
    kernel_times(running)
    return rows


# ---------------------------------------------------------------- report


def sweeps(rows: list[dict[str, Any]]) -> Iterator[tuple[Problem, str, dict[str, tuple[float, float]]]]:
    """Problem, sweep, and by strategy the measured and the predicted µs a step."""
    problems: dict[str, list[dict[str, Any]]] = {}
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


def report(rows: list[dict[str, Any]]) -> None:
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
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="print what lies in a file, and measure nothing")
    args = parser.parse_args(arguments)
    if args.report:
        report(json.loads(args.report.read_text(encoding="utf-8"))["rows"])
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("sweeps.py needs a CUDA device")
    problems = [p for p in select(args.suite, "cuda") if p.mode in ("inference", "training") and not p.by_transforms]
    rows = measure(problems, args.budget)
    commit, dirty = source_version()
    content = {"created": now(), "commit": commit, "dirty": dirty, "environment": environment("cuda"), "rows": rows}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draft = args.out.with_name(args.out.name + ".part")
        lines = ",\n  ".join(map(json.dumps, content.pop("rows")))
        draft.write_text(f'{json.dumps(content, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        os.replace(draft, args.out)
    report(rows)
    return int(any("wrong" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
