"""Measures rnnkern against its peers.

    python benchmarks/run.py --suite quick
    python benchmarks/run.py --suite grid --threads 1 --repeats 3 --least 10 --out grid.json --resume
    python benchmarks/run.py --suite gpu --device cuda --seconds 200 --out gpu.json

Every side is checked against the double reference before it is timed; the sides of a problem are timed alternately.
The results (see ``results.py``) are written after every problem; Ctrl-C ends the run and keeps what was measured, and
``--resume`` goes on with it. Each repeat is a process of its own, so that a peer that brings it down costs one problem.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import floors
from adapters import adapters
from measure import PADDED, Broken, Limits, Watch, measure_or_report
from report import print_report
from results import Results, Row, bad, is_ours
from suites import DTYPES, SUITES, Problem, select
from timing import LEAST_ROUNDS, PATIENCE, ROUNDS

INTERRUPTED, REFUSED, BROKEN = 130, 2, 3
# Arguments that may change between the sittings of one run.
OF_A_SITTING = ("out", "resume", "seconds", "repeats", "process", "watch", "resumable")


def missing(problem: Problem, sides: dict, rows: list[Row], process: int) -> dict:
    """The sides that this process has yet to measure; none when they were timed, for samples are pairs."""
    key = Row(problem.as_dict(), "", "").key
    there = [row for row in rows if row.key == key and row.repeat == process]
    if any(row.samples for row in there):
        return {}
    failed = {row.side.removesuffix(PADDED) for row in there}
    return {name: side for name, side in sides.items() if name not in failed}


def run_suite(
    problems: list[Problem],
    sides: dict,
    results: Results,
    limits: Limits,
    process: int = 0,
    out: Path | None = None,
    console: Console | None = None,
    watch: Watch | None = None,
) -> int:
    """Appends to ``results`` the rows of every problem that lacks them; 0, or why it ended early."""
    console, watch = console or Console(quiet=True), watch or Watch()
    work = [(problem, missing(problem, sides, results.rows, process)) for problem in problems]
    work = [(problem, left) for problem, left in work if left]
    if limits.seconds is not None:  # what the time does not reach is then spread evenly
        random.Random(process).shuffle(work)
    start = time.perf_counter()

    def keep(rows: list[Row]) -> None:
        for row in rows:
            row.repeat, row.sitting = process, len(results.sittings) - 1
        results.rows += rows
        if out:
            results.save(out)

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    try:
        # no automatic refresh: its thread would run beside what is timed
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False, transient=True
        ) as progress:
            task = progress.add_task("", total=len(work))
            for done, (problem, left) in enumerate(work):
                progress.update(task, completed=done, description=problem.name, refresh=True)
                one = limits
                if limits.seconds is not None:
                    seconds = limits.seconds - (time.perf_counter() - start)
                    if seconds <= 0:
                        console.print(f"time is up: {len(work) - done} of {len(work)} problems were not measured")
                        return 0
                    if limits.shrink:
                        share = 0.5 * seconds / (len(work) - done) / len(left)
                        one = replace(limits, budget=min(limits.budget, share))
                keep(measure_or_report(problem, left, one, watch))
                if not console.is_terminal:
                    console.print(f"[{done + 1}/{len(work)}] {problem.name}", highlight=False, markup=False)
    except Broken as broken:
        keep(list(broken.rows))
        return BROKEN
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far is kept")
        return INTERRUPTED
    results.complete = True
    return 0


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
        if names is None and hasattr(adapter, "ASK"):
            console.print(f"not measured: {name}, unless --peers names it: {adapter.ASK}", highlight=False)
            continue
        try:
            adapter.load()
            sides[name] = adapter
        except (ImportError, OSError) as error:  # OSError: a shared library of the peer's
            if name == "rnnkern":
                raise SystemExit(f"rnnkern cannot be imported ({error}): {adapter.INSTALL}") from error
            console.print(f"not measured: {name} is not installed ({error}): {adapter.INSTALL}", highlight=False)
    return sides


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="CUDA_VISIBLE_DEVICES picks a GPU")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the suite's own, nearly always float32")
    parser.add_argument("--mode", choices=["inference", "training", "step", "per-sample", "all"], default="all")
    parser.add_argument("--only", metavar="PATTERN", help="the suite's problems whose name, as it is printed, "
                        "this regular expression finds: 'LSTM|GRU', 'bfloat16'")  # fmt: skip
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="default: all that are installed and quick to build")
    parser.add_argument("--threads", type=int, help="CPU threads of every side (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=1, help="how often to run the suite, each time in a new process")
    parser.add_argument("--samples", type=int, default=ROUNDS, help="the most samples a side, problem and repeat")
    parser.add_argument("--least", type=int, help=f"take so many samples whatever they cost (default: {LEAST_ROUNDS}, "
                        f"and fewer where they would take {PATIENCE} times the budget)")  # fmt: skip
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of samples a side, problem and repeat")
    parser.add_argument("--seconds", type=float, help="stop after so much time: with --resume the rest is left for the "
                        "next time, without it each problem gets less")  # fmt: skip
    parser.add_argument("--out", type=Path, help="a JSON file for the results, or a folder for one named after the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)  # this is the child that measures repeat N
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resumable", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    try:
        re.compile(args.only or "")
    except re.error as wrong:
        parser.error(f"--only: expected a regular expression, got {args.only!r}: {wrong}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads: expected at least 1, got {args.threads}")
    if min(args.samples, args.repeats, args.least or 1) < 1:
        parser.error("--samples, --least and --repeats: expected at least 1")
    if args.resume and (args.out is None or args.out.suffix != ".json"):
        parser.error("--resume: --out must name the JSON file to go on with")
    if not 0 < args.budget < math.inf or not 0 <= (args.seconds or 0) < math.inf:
        parser.error("--budget: expected more than 0; --seconds: expected no less than 0")
    if args.process is None and not args.resume and args.out is not None and args.out.is_file():
        parser.error(f"--out: {args.out} exists: --resume goes on with it, or name another")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return args


def of_the_run(args: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(args).items() if name not in OF_A_SITTING}


def begin(args: argparse.Namespace) -> Results:
    """New results, or with --resume those that there are."""
    if not (args.resume and args.out.exists()):
        return Results.start(args.suite, of_the_run(args), args.device)
    results = Results.load(args.out)
    if difference := results.differs(args.suite, of_the_run(args), args.device):
        raise SystemExit(f"--resume: {args.out} is of another run: {difference}")
    results.sit()
    return results


def work(args: argparse.Namespace, console: Console) -> int:
    """What one process does: one repeat."""
    if args.threads:
        torch.set_num_threads(args.threads)
    problems = select(args.suite, args.device, args.dtype, args.mode, args.only)
    if not problems:
        found = f" that --only {args.only} finds" if args.only else ""
        raise SystemExit(f"the suite {args.suite} has no problem of --mode {args.mode}{found}")
    processors = len(os.sched_getaffinity(0))
    if args.threads and args.threads > processors:
        console.print(f"{args.threads} threads on {processors} processors: each waits for others", highlight=False)
    results = begin(args)
    sides = available(args.peers, Console(quiet=True) if args.process else console)
    if args.device == "cpu" or not results.limits:
        console.print("measuring what this machine can do", highlight=False)
        results.limits = floors.best(results.limits, floors.measure_limits(args.device, torch.get_num_threads()))
        results.save(args.out)
    least, patience = (args.least, float("inf")) if args.least else (LEAST_ROUNDS, PATIENCE)
    rounds = max(args.samples, args.least or 1)
    limits = Limits(args.seconds, args.budget, rounds, least, patience, shrink=not args.resumable)
    results.complete = False
    code = run_suite(problems, sides, results, limits, args.process, args.out, console, Watch(args.watch))
    there = {(row.key, row.repeat) for row in results.rows}
    wanted = {(Row(problem.as_dict(), "", "").key, repeat) for problem in problems for repeat in range(args.repeats)}
    results.complete = results.complete and wanted <= there
    results.save(args.out)
    return code


def supervise(args: argparse.Namespace, own: list[str], folder: Path) -> int:
    """Every repeat in a process of its own, again when a peer brought it down; how the last one ended."""
    watch = folder / "watch"
    code, interrupted, start = 0, False, time.perf_counter()
    for process in range(args.repeats):
        resume = args.resume or process > 0
        while True:
            command = [sys.executable, __file__, *own, "--out", str(args.out), "--watch", str(watch)]
            command += ["--process", str(process), *(["--resume"] if resume else [])]
            command += ["--resumable"] if args.resume else []
            if args.seconds:
                left = args.seconds - (time.perf_counter() - start)
                left = left if args.resume else left / (args.repeats - process)
                if left <= 0:
                    return code
                command += ["--seconds", f"{left:.1f}"]
            code, interrupted = spawn(command)
            resume = True
            if code < 0 and code != -signal.SIGINT and args.out.exists():
                side, problem = Watch.read(watch) if watch.exists() else ("", "")
                if not side:
                    return 1  # not a side's doing: again would end the same way
                results = Results.load(args.out)
                message = f"ended the process: {signal.Signals(-code).name}"
                results.rows.append(Row(json.loads(problem), side, "failed", process, message=message))
                results.save(args.out)
            elif code != BROKEN:
                break
            if interrupted:
                break
        if interrupted or code:
            break
    return INTERRUPTED if interrupted or code == -signal.SIGINT else code


def spawn(command: list[str]) -> tuple[int, bool]:
    """How the command ended, and whether Ctrl-C was why. It reaches the command as well, which ends by itself and keeps
    what it has; a second one ends what does not listen."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    interrupts = 0
    before = signal.signal(signal.SIGTERM, end)
    child = subprocess.Popen(command)
    try:
        while True:
            try:
                return child.wait(), interrupts > 0
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    child.kill()
    finally:
        child.kill()  # where this process was told to end
        child.wait()
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    own = list(sys.argv[1:] if arguments is None else arguments)
    args = parse(own)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if args.process is not None:
        try:
            return work(args, console)
        except SystemExit as refusal:
            print(refusal, file=sys.stderr)
            return REFUSED
    with tempfile.TemporaryDirectory() as folder:
        kept = args.out is not None
        args.out = args.out or Path(folder, "results.json")
        if args.out.suffix != ".json":
            args.out /= f"{args.suite}-{torch.device(args.device).type}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        code = supervise(args, own, Path(folder))
        if code == REFUSED or not args.out.exists():
            return code or 1
        results = Results.load(args.out)
        print_report(results, console)
        if kept:
            console.print(f"written to {args.out}", highlight=False)
    unfinished = not results.complete and args.seconds is None
    return code or int(unfinished or bool(bad([row for row in results.rows if is_ours(row.side)])))


if __name__ == "__main__":
    sys.exit(main())
