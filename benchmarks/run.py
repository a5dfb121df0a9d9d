"""Measures rnnkern against its peers.

    python benchmarks/run.py --suite quick
    python benchmarks/run.py --suite grid --mode inference --threads 1 --out grid.json
    python benchmarks/run.py --suite gpu --device cuda --seconds 200 --out gpu.json

Every side is checked against the double reference before it is timed; the sides of a problem are timed alternately.
The results (see ``results.py``) are written after every problem; Ctrl-C ends the run and keeps what was measured.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapters import Unsupported, adapters
from report import print_report
from results import Results, Row
from suites import DTYPES, SUITES, Data, Problem, select
from timing import ROUNDS, interleave

POOL = {"cpu": 64e6, "cuda": 256e6}  # bytes of inputs to rotate through: more than a cache holds
MOST_INPUTS = 1024


@dataclass
class Limits:
    """How long to measure: ``seconds`` in all, ``budget`` seconds and ``rounds`` samples a side for one problem."""

    seconds: float | None = None
    budget: float = 2.0
    rounds: int = ROUNDS


class Crash(Exception):
    """What a side raised while it was timed."""

    def __init__(self, side: str, cause: Exception):
        super().__init__(describe(cause))
        self.side = side


def describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def guarded(side: str, call: Callable[[int], object]) -> Callable[[int], object]:
    def guard(i: int) -> object:
        try:
            return call(i)
        except Exception as error:
            raise Crash(side, error) from error

    return guard


def check_sides(problem: Problem, sides: dict) -> dict[str, Row]:
    """One row a side: ok with its error, or why the side is not timed."""
    from check import FLOPS, compare, expected

    data = Data(problem.shortened(FLOPS[torch.device(problem.device).type]))
    want = expected(data)
    rows = {}
    for name, adapter in sides.items():
        row = rows[name] = Row(problem.as_dict(), name, "ok")
        try:
            call = adapter.build(data)
            with problem.mode_of_torch():
                got = call(0)
            row.error, row.message = compare(problem, got, want, is_peer=name != "rnnkern")
            row.status = "wrong" if row.message else "ok"
        except Unsupported as error:
            row.status, row.message = "unsupported", str(error)
        except Exception as error:
            row.status, row.message = "failed", describe(error)
    return rows


def input_count(problem: Problem) -> int:
    one = problem.steps * problem.batch * problem.hidden * getattr(torch, problem.dtype).itemsize
    return max(2, min(MOST_INPUTS, int(POOL[torch.device(problem.device).type] / one)))


def measure(problem: Problem, sides: dict, limits: Limits) -> list[Row]:
    """Checks, then times every side that passed."""
    rows = check_sides(problem, sides)
    data = Data(problem, input_count(problem))
    calls: dict[str, Callable[[int], object]] = {}

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            rows[name].status, rows[name].message = "failed", describe(error)

    for name in [name for name, row in rows.items() if row.status == "ok"]:
        attempt(name, lambda name=name: calls.update({name: guarded(name, sides[name].build(data))}))
    if "rnnkern" in calls and hasattr(sides["rnnkern"], "plan"):
        attempt("rnnkern", lambda: setattr(rows["rnnkern"], "plan", sides["rnnkern"].plan(data)))
    if "rnnkern" in calls and problem.packed:  # what the same layer takes when nothing is packed
        name = "rnnkern padded"
        rows[name] = Row(problem.as_dict(), name, "ok", useful=data.useful)
        padded = Data(replace(problem, packed=False), len(data.inputs))
        attempt(name, lambda: calls.update({name: guarded(name, sides["rnnkern"].build(padded))}))
    while calls:
        try:
            with problem.mode_of_torch():
                timed = interleave(calls, device=problem.device, budget=limits.budget, rounds=limits.rounds)
        except Crash as crash:
            rows[crash.side].status, rows[crash.side].message = "failed", str(crash)
            del calls[crash.side]
            continue
        for name, one in timed.items():
            rows[name].samples, rows[name].calls = one.samples, one.calls
        break
    return list(rows.values())


def run_suite(
    problems: list[Problem],
    sides: dict,
    results: Results,
    limits: Limits,
    repeats: int = 1,
    out: Path | None = None,
    console: Console | None = None,
) -> bool:
    """Appends the rows of every problem to ``results``; false when it was interrupted."""
    console = console or Console(quiet=True)
    work = [(repeat, problem) for repeat in range(repeats) for problem in problems]
    if limits.seconds is not None:  # what the time does not reach is then spread evenly
        random.Random(0).shuffle(work)
    start = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        # no automatic refresh: its thread would run beside what is timed
        with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
            task = progress.add_task("", total=len(work))
            for done, (repeat, problem) in enumerate(work):
                progress.update(task, completed=done, description=problem.name, refresh=True)
                one = limits
                if limits.seconds is not None:
                    left = limits.seconds - (time.perf_counter() - start)
                    if left <= 0:
                        console.print(f"time is up: {len(work) - done} of {len(work)} problems were not measured")
                        return True
                    one = replace(limits, budget=min(limits.budget, 0.5 * left / (len(work) - done)))
                rows = measure_or_report(problem, sides, one)
                for row in rows:
                    row.repeat = repeat
                results.rows += rows
                if out:
                    results.save(out)
                if not console.is_terminal:
                    console.print(f"[{done + 1}/{len(work)}] {problem.name}", highlight=False, markup=False)
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far is kept")
        return False
    results.complete = True
    return True


def measure_or_report(problem: Problem, sides: dict, limits: Limits) -> list[Row]:
    """What goes wrong outside of the sides (no memory for the reference, say) ends one problem, not the run."""
    try:
        return measure(problem, sides, limits)
    except Exception as error:
        return [Row(problem.as_dict(), name, "failed", message=describe(error)) for name in sides]


def available(names: Iterable[str] | None, console: Console) -> dict:
    """rnnkern and the asked-for peers that are installed."""
    known = adapters()
    unknown = set(names or ()) - set(known)
    if unknown:
        raise SystemExit(f"--peers: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    sides = {}
    for name, adapter in known.items():
        if name != "rnnkern" and names is not None and name not in names:
            continue
        try:
            adapter.load()
            sides[name] = adapter
        except ImportError as error:
            if name == "rnnkern":
                raise SystemExit(f"rnnkern cannot be imported ({error}): {adapter.INSTALL}") from error
            console.print(f"not measured: {name} is not installed: {adapter.INSTALL}", highlight=False)
    return sides


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the suite's own, nearly always float32")
    parser.add_argument("--mode", choices=["inference", "training", "step", "all"], default="all")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="default: all that are installed")
    parser.add_argument("--threads", type=int, help="CPU threads of every side (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=1, help="how often to run the whole suite")
    parser.add_argument("--samples", type=int, default=ROUNDS, help="the most samples a side, problem and repeat")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds to spend on the samples of one problem")
    parser.add_argument("--seconds", type=float, help="stop after so much time in all")
    parser.add_argument("--out", type=Path, help="a JSON file for the results, or a folder for one named after the run")
    args = parser.parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads: expected at least 1, got {args.threads}")
    if args.samples < 1 or args.repeats < 1:
        parser.error("--samples and --repeats: expected at least 1")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if args.threads:
        torch.set_num_threads(args.threads)
    sides = available(args.peers, console)
    problems = select(args.suite, args.device, args.dtype, args.mode)
    if not problems:
        raise SystemExit(f"--mode: the suite {args.suite} has no problem of mode {args.mode}")
    if args.out and args.out.suffix != ".json":
        args.out /= f"{args.suite}-{torch.device(args.device).type}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results = Results.start(args.suite, {k: v for k, v in vars(args).items() if k != "out"}, args.device)
    limits = Limits(args.seconds, args.budget, args.samples)
    finished = run_suite(problems, sides, results, limits, args.repeats, args.out, console)
    if args.out:
        results.save(args.out)
    print_report(results, console)
    if args.out:
        console.print(f"written to {args.out}", highlight=False)
    if not finished:
        return 130
    return 1 if any(row.status in ("wrong", "failed") and row.side == "rnnkern" for row in results.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
