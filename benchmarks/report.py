"""The terminal table of a run: rnnkern beside every peer.

python benchmarks/report.py results.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from results import Results, Row, paired_ratio, spread
from suites import Problem


def by_problem(results: Results) -> dict[str, dict[str, list[Row]]]:
    """key of the problem → side → its rows, one a repeat."""
    problems: dict[str, dict[str, list[Row]]] = {}
    for row in results.rows:
        problems.setdefault(row.key, {}).setdefault(row.side, []).append(row)
    return problems


def samples(rows: list[Row]) -> list[float]:
    return [s for row in rows for s in row.samples]


def ratio(ours: list[Row], theirs: list[Row]) -> float | None:
    """How many times faster than the other side; over the repeats in which both were measured."""
    other = {row.repeat: row for row in theirs if row.samples}
    pairs = [(row.samples, other[row.repeat].samples) for row in ours if row.samples and row.repeat in other]
    if not pairs:
        return None
    return paired_ratio([s for o, _ in pairs for s in o], [s for _, t in pairs for s in t])


def time_a_step(rows: list[Row], steps: int) -> str:
    """Median and interquartile range in µs."""
    middle, width = (1e6 * value / steps for value in spread(samples(rows)))
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ± {width:.{digits}f}"


def time_or_status(rows: list[Row], problem: Problem) -> str:
    if samples(rows):
        return time_a_step(rows, problem.steps)
    return "" if not rows else "–" if rows[0].status == "unsupported" else rows[0].status


def print_report(results: Results, console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    facts = results.environment
    where = facts.get("gpu") or facts["cpu"]
    say(f"{where}, {facts['threads']} threads, torch {facts['torch']}, rnnkern {facts['rnnkern']}")
    if facts["load"] > 0.5 * facts["cores"]:
        say(f"the machine was busy when the run began (load {facts['load']:.1f}): expect wide spreads")
    measured = dict.fromkeys(row.side for row in results.rows if row.samples)
    peers = [side for side in measured if not side.startswith("rnnkern")]
    table = Table(caption="µs a time step, median ± interquartile range; ×: how many times faster rnnkern is")
    table.add_column("problem")
    for column in ["rnnkern", *(column for peer in peers for column in (peer, "×"))]:
        table.add_column(column, justify="right")
    found: dict[str, list[tuple[float, str]]] = {peer: [] for peer in peers}
    packed = []
    for sides in by_problem(results).values():
        problem = Problem(**next(iter(sides.values()))[0].problem)
        ours = sides.get("rnnkern", [])
        cells = [problem.name, time_or_status(ours, problem)]
        for peer in peers:
            theirs = sides.get(peer, [])
            faster = ratio(ours, theirs)
            cells.append(time_or_status(theirs, problem))
            cells.append("" if faster is None else f"[{'red' if faster < 0.95 else 'green'}]{faster:.2f}[/]")
            if faster is not None:
                found[peer].append((faster, problem.name))
        table.add_row(*cells)
        padded = sides.get("rnnkern padded", [])
        against = ratio(padded, ours)
        if against is not None:
            useful = padded[0].useful
            packed.append(f"{problem.name}: {against / useful:.2f} × (our padded time × useful fraction {useful:.2f})")
    console.print(table)
    for line in packed:
        say(line)
    for row in results.rows:
        if row.status in ("wrong", "failed"):
            say(f"{row.side}, {Problem(**row.problem).name}: {row.status}: {row.message}")
    for peer, ratios in found.items():
        mean = statistics.geometric_mean(value for value, _ in ratios) if ratios else float("nan")
        say(f"against {peer}: {mean:.2f}× (geometric mean of {len(ratios)})")
    everything = [(value, name, peer) for peer, ratios in found.items() for value, name in ratios]
    if everything:
        value, name, peer = min(everything)
        say(f"worst case: {value:.2f}× against {peer}: {name}")


if __name__ == "__main__":
    print_report(Results.load(Path(sys.argv[1])), Console())
