"""Plots of a run: µs a step over H for each batch size beside the floor, and the ratios as a heat map.

    python benchmarks/plots.py results.json... --out folder

Writes SVG and PNG. The SVG files name the digest of what they show, so that a stale one is found without drawing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from floors import floor
from results import Results, against_better, by_problem, samples
from stats import spread
from suites import Problem

CELLS = ("lstm", "gru", "rnn")
DRAWN_BY = 1  # to be raised when the drawing changes


@dataclass(frozen=True)
class Point:
    """One problem with one plain layer: seconds of a call, ours, the better peer's and the floor's."""

    problem: Problem
    ours: float | None
    peer: float | None
    floor: float | None
    ratio: float | None


@dataclass
class Plot:
    """``kind``: "steps" or "ratios"; all problems share mode, dtype and number of steps."""

    name: str
    kind: str
    title: str
    points: list[Point]

    @property
    def digest(self) -> str:
        values = [DRAWN_BY, self.title, [[p.problem.name, p.ours, p.peer, p.floor, p.ratio] for p in self.points]]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def median(rows: list | None) -> float | None:
    return spread(samples(rows))[0] if rows and samples(rows) else None


def is_plain(problem: Problem) -> bool:
    odd = (problem.bidirectional, problem.projection, problem.packed, problem.reset, not problem.one_call)
    return problem.layers == 1 and problem.mode != "step" and not any(odd)


def points_of(results: Results) -> list[Point]:
    found = []
    for sides in by_problem(results.rows).values():
        problem = Problem(**next(iter(sides.values()))[0].problem)
        if not is_plain(problem):
            continue
        best = against_better(sides)
        peer = median(sides[best[1]]) if best else None
        ratio = best[0].value if best else None
        found.append(Point(problem, median(sides.get("rnnkern")), peer, floor(problem, results.limits), ratio))
    return found


def plots_of(results: Results, label: str = "") -> list[Plot]:
    """Two for each mode, dtype and length of sequence that at least two hidden sizes were measured of."""
    groups: dict[tuple, list[Point]] = {}
    for point in points_of(results):
        p = point.problem
        groups.setdefault((p.mode, p.dtype, p.steps), []).append(point)
    plots = []
    for (mode, dtype, steps), points in groups.items():
        if len({point.problem.hidden for point in points}) < 2:
            continue
        title = f"{mode}, {dtype}, T {steps}, {results.where}"
        stem = f"{label or results.suite}-{mode}-{dtype}-T{steps}"
        plots.append(Plot(f"{stem}-steps", "steps", title, points))
        if any(point.ratio for point in points):
            plots.append(Plot(f"{stem}-ratios", "ratios", title, points))
    return plots


def draw(plot: Plot):
    """The figure. No window is opened."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "rnnkern"  # equal names inside of equal files
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a tenth of the size
    cells = [cell for cell in CELLS if any(point.problem.cell == cell for point in plot.points)]
    figure = Figure(figsize=(4.6 * len(cells), 4.2 if plot.kind == "steps" else 2.6), layout="constrained")
    figure.suptitle(plot.title, fontsize=10)
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        points = [point for point in plot.points if point.problem.cell == cell]
        (draw_steps if plot.kind == "steps" else draw_ratios)(axes, points)
        axes.set_title(cell.upper(), fontsize=10)
    return figure


def draw_steps(axes, points: list[Point]) -> None:
    for index, batch in enumerate(sorted({point.problem.batch for point in points})):
        row = sorted((p for p in points if p.problem.batch == batch), key=lambda p: p.problem.hidden)
        colour = f"C{index}"
        for what, style, label in (("ours", "-o", f"B {batch}"), ("peer", "--", None), ("floor", ":", None)):
            known = [(p.problem.hidden, 1e6 * getattr(p, what) / p.problem.steps) for p in row if getattr(p, what)]
            if known:
                axes.plot(*zip(*known, strict=True), style, color=colour, label=label, markersize=3, linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel="H", ylabel="µs a step: — rnnkern, - - better peer, ··· floor")
    ticks = sorted({point.problem.hidden for point in points})
    axes.set_xticks(ticks, ["" if tick - 1 in ticks else str(tick) for tick in ticks], fontsize=7, rotation=90)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def draw_ratios(axes, points: list[Point]) -> None:
    """Red: slower than the better peer; white: as fast; blue: faster; the colour stops at 4 times."""
    from matplotlib.colors import LogNorm

    hidden = sorted({point.problem.hidden for point in points})
    batches = sorted({point.problem.batch for point in points})
    ratios = {(point.problem.batch, point.problem.hidden): point.ratio for point in points}
    values = [[ratios.get((b, h)) or float("nan") for h in hidden] for b in batches]
    edges = ([k - 0.5 for k in range(len(names) + 1)] for names in (hidden, batches))
    axes.pcolormesh(*edges, values, cmap="RdBu", norm=LogNorm(0.25, 4))
    axes.invert_yaxis()
    axes.set_xticks(range(len(hidden)), [str(h) for h in hidden], fontsize=7, rotation=90)
    axes.set_yticks(range(len(batches)), [f"B {b}" for b in batches], fontsize=7)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                dark = value > 2.5 or value < 0.4
                text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    axes.set_xlabel("H; × faster than the better peer", fontsize=8)


def svg(plot: Plot) -> str:
    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Description": f"digest {plot.digest}"}
    draw(plot).savefig(text, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def digest_in(path: Path) -> str | None:
    """Of what the SVG file shows; None without the file."""
    found = re.search(r"digest ([0-9a-f]{16})", path.read_text(encoding="utf-8")) if path.exists() else None
    return found[1] if found else None


def write(plots: list[Plot], folder: Path, png: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.svg").write_text(svg(plot), encoding="utf-8")
        if png:
            draw(plot).savefig(folder / f"{plot.name}.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("build/plots"))
    args = parser.parse_args(arguments)
    for path in args.results:
        write(plots_of(Results.load(path), path.stem), args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
