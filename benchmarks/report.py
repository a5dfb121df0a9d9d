"""The terminal table of a run: rnnkern beside every peer.

python benchmarks/report.py results.json
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from floors import floor
from results import Results, Row, by_problem, faster, is_ours, samples
from stats import spread
from suites import Problem


def digits(value: float) -> str:
    """Three significant digits, as far as they lie behind the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def time_a_step(rows: list[Row], steps: int) -> str:
    """Median and interquartile range in µs."""
    middle, width = (1e6 * value / steps for value in spread(samples(rows)))
    places = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{places}f} ± {width:.{places}f}"


def time_or_status(rows: list[Row], problem: Problem) -> str:
    if samples(rows):
        return time_a_step(rows, problem.steps)
    return "" if not rows else "–" if rows[0].status == "unsupported" else rows[0].status


def of_floor(rows: list[Row], problem: Problem, limits: dict) -> float | None:
    """The floor's share of the time that was measured: 1 is as fast as the hardware allows. None too where it is more,
    for then the machine did more than what was measured of it."""
    least = floor(problem, limits)
    share = least / spread(samples(rows))[0] if least and samples(rows) else 2.0
    return share if share <= 1 else None


def describe_limits(limits: dict) -> str:
    """One line of what the machine was measured to do."""
    if not limits:
        return ""
    words = [limits["missing"]] if "missing" in limits else []
    words += [f"{cache['level']} {cache['gbs']:.0f} GB/s" for cache in limits.get("caches", [])]
    words += [f"{name.removesuffix('_us')} {limits[name]:.2f} µs" for name in limits if name.endswith("_us")]
    words += [f"{name.removesuffix('_gbs')} {limits[name]:.0f} GB/s" for name in limits if name.endswith("_gbs")]
    words += [f"FMA {limits['fma_gflops']:.0f} GFLOP/s"] if "fma_gflops" in limits else []
    words += [f"GEMM {dtype} {value:.0f} GFLOP/s" for dtype, value in limits.get("gemm_gflops", {}).items()]
    return f"this machine, {limits['threads']} threads: " + ", ".join(words)


class Report:
    """Collects the table's rows and what stands below it."""

    def __init__(self, results: Results):
        self.limits = results.limits
        measured = dict.fromkeys(row.side for row in results.rows if row.samples)
        self.peers = [side for side in measured if side not in ("rnnkern", "rnnkern padded")]
        self.found: dict[str, list[tuple[float, str]]] = {peer: [] for peer in self.peers}
        self.packed: list[str] = []
        self.table = Table(
            caption="µs a time step, median ± interquartile range; ×: how many times faster rnnkern is; "
            "of floor: the share of rnnkern's time that the hardware needs at least"
        )
        self.table.add_column("problem")
        for column in ["rnnkern", "of floor", *(column for peer in self.peers for column in (peer, "×"))]:
            self.table.add_column(column, justify="right")

    def add(self, sides: dict[str, list[Row]]) -> None:
        problem = Problem(**next(iter(sides.values()))[0].problem)
        ours = sides.get("rnnkern", [])
        share = of_floor(ours, problem, self.limits)
        cells = [problem.name, time_or_status(ours, problem), "" if share is None else f"{share:.0%}"]
        for peer in self.peers:
            theirs = sides.get(peer, [])
            ratio = faster(ours, theirs)
            cells.append(time_or_status(theirs, problem))
            cells.append("" if ratio is None else f"[{'red' if ratio.slower else 'green'}]{ratio.value:.2f}[/]")
            if ratio is not None:
                self.found[peer].append((ratio.value, problem.name))
        self.table.add_row(*cells)
        padded = sides.get("rnnkern padded", [])
        against = faster(padded, ours)
        if against is not None:
            useful = problem.useful
            share = against.value / useful
            self.packed.append(f"{problem.name}: {share:.2f} × (our padded time × useful fraction {useful:.2f})")

    def closing(self) -> list[str]:
        lines = []
        for peer, ratios in self.found.items():
            if ratios:
                mean = statistics.geometric_mean(value for value, _ in ratios)
                lines.append(f"against {peer}: {mean:.2f}× (geometric mean of {len(ratios)})")
        everything = [(value, name, peer) for peer, found in self.found.items() for value, name in found
                      if not is_ours(peer) and "int8" not in peer]  # fmt: skip
        if everything:
            value, name, peer = min(everything)
            lines.append(f"worst case: {value:.2f}× against {peer}: {name}")
        return lines


def print_report(results: Results, console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    facts = results.environment
    say(f"{results.machine}, {facts['threads']} threads, torch {facts['torch']}, rnnkern {facts['rnnkern']}")
    if line := describe_limits(results.limits):
        say(line)
    if facts["load"] > 0.5 * facts["cores"]:
        say(f"the machine was busy when the run began (load {facts['load']:.1f}): expect wide spreads")
    report = Report(results)
    for sides in by_problem(results.rows).values():
        report.add(sides)
    console.print(report.table)
    for line in report.packed:
        say(line)
    for row in results.rows:
        if row.status in ("wrong", "failed"):
            say(f"{row.side}, {Problem(**row.problem).name}: {row.status}: {row.message}")
    for line in report.closing():
        say(line)
    if not results.complete:
        say("this run is not complete")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The table of a file of results.")
    parser.add_argument("results", type=Path)
    print_report(Results.load(parser.parse_args().results), Console())
