"""One HTML file that holds everything of some runs: a table to sort and filter, and the plots. It loads nothing.

python benchmarks/page.py results.json... --out report.html
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import Any

from plots import plots_of, svg
from report import describe_limits, of_floor
from results import Results, Row, by_problem, faster, samples
from stats import spread
from suites import Problem

TEMPLATE = Path(__file__).with_name("page.html")
COLUMNS = ["run", "cell", "mode", "H", "B", "T", "dtype", "what else", "threads", "peer", "rnnkern µs", "IQR",
           "peer µs", "peer IQR", "×", "from", "to", "pairs", "of floor", "verdict", "note"]  # fmt: skip


def micro(rows: list[Row], steps: int) -> tuple[float | None, float | None]:
    if not samples(rows):
        return None, None
    middle, width = spread(samples(rows))
    return 1e6 * middle / steps, 1e6 * width / steps


def row(run: str, results: Results, problem: Problem, sides: dict[str, list[Row]], peer: str) -> list[Any]:
    ours, theirs = sides.get("rnnkern", []), sides[peer]
    ratio = faster(ours, theirs)
    ours_us, ours_iqr = micro(ours, problem.steps)
    peer_us, peer_iqr = micro(theirs, problem.steps)
    share = of_floor(ours, problem, results.limits)
    verdict = "not measured" if ratio is None else "slower" if ratio.slower else "faster" if ratio.low > 1 else "equal"
    note = "; ".join(dict.fromkeys(f"{one.side}: {one.message}" for one in (*ours, *theirs) if one.message))
    interval = (ratio.value, ratio.low, ratio.high, ratio.pairs) if ratio else (None, None, None, None)
    return [
        run, problem.cell.upper(), problem.mode, problem.hidden, problem.batch, problem.steps, problem.dtype,
        problem.extras, results.environment["threads"], peer, ours_us, ours_iqr, peer_us, peer_iqr, *interval, share,
        verdict, note,
    ]  # fmt: skip


def rows_of(run: str, results: Results) -> list[list[Any]]:
    found = []
    for sides in by_problem(results.rows).values():
        problem = Problem(**next(iter(sides.values()))[0].problem)
        asked = [side for side, rows in sides.items() if side not in ("rnnkern", "rnnkern padded")
                 and rows[0].status != "unsupported"]  # fmt: skip
        found += [row(run, results, problem, sides, peer) for peer in asked]
    return found


def about(run: str, results: Results) -> str:
    """What a reader must know of one run."""
    facts = results.environment | {"commit": results.commit, "changed files": results.dirty,
                                   "created": results.created, "complete": results.complete}  # fmt: skip
    limits = describe_limits(results.limits)
    lines = [f"{name}: {json.dumps(value) if isinstance(value, dict) else value}" for name, value in facts.items()]
    lines.append(f"arguments: {json.dumps(results.arguments)}")
    heading = f"{run}: suite {results.suite}, {results.machine}, {facts['threads']} threads, torch {facts['torch']}"
    items = "".join(f"<li>{html.escape(line)}</li>" for line in [*([limits] if limits else []), *lines])
    return f"<details><summary>{html.escape(heading)}</summary><ul>{items}</ul></details>"


def page(runs: dict[str, Results]) -> str:
    """The HTML text; ``runs`` by name."""
    data = {"columns": COLUMNS, "rows": [one for run, results in runs.items() for one in rows_of(run, results)]}
    pictures = []
    for run, results in runs.items():
        for plot in plots_of(results, run):
            text = svg(plot)
            pictures.append(f"<figure>{text[text.index('<svg') :]}</figure>")
    parts = {
        "runs": "\n".join(about(run, results) for run, results in runs.items()),
        "plots": "\n".join(pictures) or "<p>none: these runs measured no series of sizes</p>",
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("build/report.html"))
    args = parser.parse_args(arguments)
    if len({path.stem for path in args.results}) < len(args.results):
        parser.error("results: expected files of different names, by which the report tells them apart")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page({path.stem: Results.load(path) for path in args.results}), encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
