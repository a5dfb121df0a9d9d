"""What changed between two runs on one machine, beyond noise.

    python benchmarks/compare.py before.json after.json
    python benchmarks/compare.py before.json after.json --bound 1.1

Two runs have no samples in common. Where both measured a peer, a side's time is taken relative to that peer's in the
same round, which cancels what made the whole machine slower, and beside each of several; else the plain time counts. A
change counts where the 95 % intervals of the medians of all processes of one run lie beyond those of the other's: two
processes of the same code differ by more than the samples of one, so that runs of one process (no --repeats) cry wolf.
Exits with 1 when something of rnnkern's became slower by more than the bound, failed its check, or is no longer
measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from results import Results, Row, bad, by_problem, is_ours, samples
from stats import LEAST_PROCESSES, bootstrap, spread
from suites import Problem

BOUND = 1.1


@dataclass
class Change:
    """``factor``: how many times as long it takes as before. ``sure``: beyond noise."""

    problem: str
    side: str
    factor: float
    sure: bool
    basis: str


def relative(ours: list[Row], theirs: list[Row]) -> list[list[float]]:
    """Of each process, our samples over those of another side that were taken right beside them."""
    other = {row.repeat: row.samples for row in theirs}
    found = ([o / t for o, t in zip(row.samples, other.get(row.repeat, []), strict=False)] for row in ours)
    return [group for group in found if group]


def change(problem: str, side: str, before: dict[str, list[Row]], after: dict[str, list[Row]]) -> Change | None:
    """Of one side; None where one of the runs did not measure it. Beside several peers the least change counts, for one
    of them may have changed itself."""
    both = [name for name in before if samples(before[name]) and samples(after.get(name, []))]
    peers = [name for name in both if not is_ours(name)] if is_ours(side) else []
    bases = [(f"beside {peer}", relative(before[side], before[peer]), relative(after[side], after[peer]))
             for peer in peers]  # fmt: skip
    if not bases:
        bases = [("time", *([row.samples for row in run[side] if row.samples] for run in (before, after)))]
    found = [one_change(problem, side, *basis) for basis in bases if basis[1] and basis[2]]
    if any(not one.sure for one in found) or len({one.factor > 1 for one in found}) > 1:
        found = [replace(one, sure=False) for one in found]
    return min(found, key=lambda one: abs(math.log(one.factor)), default=None)


def one_change(problem: str, side: str, basis: str, old: list[list[float]], new: list[list[float]]) -> Change:
    (old_low, old_high), (new_low, new_high) = interval(old), interval(new)
    apart = new_low > old_high or new_high < old_low
    return Change(problem, side, spread(sum(new, []))[0] / spread(sum(old, []))[0], apart, basis)


def interval(groups: list[list[float]]) -> tuple[float, float]:
    """What holds the interval of the median of every process."""
    lows, highs = zip(*(bootstrap(group) for group in groups), strict=True)
    return min(lows), max(highs)


def processes(results: Results) -> int:
    return len({row.repeat for row in results.rows if row.samples})


def compare(before: Results, after: Results) -> tuple[list[Change], list[str]]:
    """Every side that both runs measured, and what only the first did."""
    changes, lost = [], []
    picked = ("only", "mode", "dtype")
    same_problems = all(before.arguments.get(name) == after.arguments.get(name) for name in picked)
    then, now = by_problem(before.rows), by_problem(after.rows)
    for key, sides in then.items():
        name = Problem(**next(iter(sides.values()))[0].problem).name
        if key not in now:  # not asked for this time, or not reached
            lost += [f"{name}: missing"] if same_problems else []
            continue
        for side in sides:
            found = change(name, side, sides, now[key]) if side in now[key] else None
            rows = now[key].get(side, [])
            failed = [row for row in rows if row.status != "ok" and (not found or bad([row]))]
            if found:
                changes.append(found)
            if is_ours(side) and failed:
                lost.append(f"{side}, {name}: {failed[0].status}: {failed[0].message}")
            elif is_ours(side) and not found and samples(sides[side]):
                lost.append(f"{side}, {name}: missing")
    return changes, lost


def differences(before: Results, after: Results) -> list[str]:
    names = ("cpu", "gpu", "threads", "torch", "precision", "peers", "variables", "cuda", "cudnn")
    pairs = [(name, before.environment.get(name), after.environment.get(name)) for name in names
             if name in before.environment and name in after.environment]  # fmt: skip
    return [f"{name} was {old}, is {new}: the times do not compare" for name, old, new in pairs if old != new]


def print_changes(changes: list[Change], bound: float, console: Console) -> list[Change]:
    """The table of what changed; returns what became slower by more than the bound."""
    shown = sorted((one for one in changes if one.sure), key=lambda one: -one.factor)
    worse = [one for one in shown if is_ours(one.side) and one.factor > bound]
    table = Table("problem", "side", "× the time", "by", caption="what changed beyond noise")
    for one in shown:
        colour = "red" if one in worse else "green" if one.factor < 1 else "default"
        table.add_row(one.problem, one.side, f"[{colour}]{one.factor:.2f}[/]", one.basis)
    if shown:
        console.print(table)
    console.print(f"{len(shown)} of {len(changes)} changed beyond noise, {len(worse)} slower than {bound} times")
    return worse


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--bound", type=float, default=BOUND, help=f"allowed factor of time (default: {BOUND})")
    args = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    before, after = Results.load(args.before), Results.load(args.after)
    for line in differences(before, after):
        console.print(line, highlight=False)
    if min(processes(before), processes(after)) < LEAST_PROCESSES:
        console.print(f"fewer than {LEAST_PROCESSES} processes a run: some of this is how processes differ")
    changes, lost = compare(before, after)
    if not changes and not by_problem(before.rows).keys() & by_problem(after.rows).keys():
        console.print("the runs have no problem in common")
        return 2
    worse = print_changes(changes, args.bound, console)
    for line in lost:
        console.print(f"no longer measured: {line}", highlight=False, markup=False)
    return int(bool(worse or lost))


if __name__ == "__main__":
    sys.exit(main())
