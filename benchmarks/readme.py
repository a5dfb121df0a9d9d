"""README's figures, RESULTS.md, GOALS.md and the plots, all from the results that lie in ``benchmarks/results``.

python benchmarks/readme.py            writes them
python benchmarks/readme.py --check    names what is stale, and exits with 1 when something is
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import goals
import plots
from committed import FOLDER, Run, runs
from report import digits
from results import BETTER_OF, against_better, bad, faster, samples
from stats import SLOWER, spread
from suites import Problem, select

README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).with_name("RESULTS.md")
PLOTS = FOLDER / "plots"
GRAPHED = "torch CUDA graph"
BEGIN, END = "<!-- figures: made by `make figures` -->", "<!-- end of figures -->"


def micro(rows: list, steps: int) -> str:
    return digits(1e6 * spread(samples(rows))[0] / steps) if rows and samples(rows) else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def short_name(problem: Problem) -> str:
    return problem.name.replace(" T 100", "") if problem.steps == 100 else problem.name


def quick_cell(problem: Problem, sides: dict[str, list]) -> str:
    ours = sides.get("rnnkern", [])
    if failure := bad(ours):
        return failure
    ratios = [faster(ours, sides.get(peer, [])) for peer in BETTER_OF]
    return f"{micro(ours, problem.steps)} ({', '.join(digits(ratio.value) for ratio in ratios if ratio)})"


def quick_table(found: list[Run]) -> str:
    """A column for each run."""
    measured = [dict(run.problems()) for run in found]
    problems = dict.fromkeys([*select("quick", found[0].device), *(problem for one in measured for problem in one)])
    rows = [
        [short_name(problem), *(quick_cell(problem, one[problem]) if problem in one else "" for one in measured)]
        for problem in problems
    ]
    return table(["`quick`", *(run.where for run in found)], rows)


def quick_tables(found: list[Run]) -> Iterator[str]:
    """A table for each number of threads, with a column for each machine."""
    for kind in dict.fromkeys((run.device, run.threads) for run in found):
        yield quick_table([run for run in found if (run.device, run.threads) == kind])


def overview(found: list[Run]) -> str:
    """Of each machine and kind of work in ``grid``: the mean ratio against the better peer, the lowest, how many.

    A problem that stands in several runs counts once, as the latest has it that has both peers.
    """
    latest: dict[tuple[str, str], dict[Problem, float]] = {}
    for run in sorted(found, key=lambda run: run.results.created):
        for problem, sides in run.problems():
            if ratio := against_better(sides):
                latest.setdefault((run.where, problem.dtype), {})[problem] = ratio[0].value
    kinds = [(cell, mode) for cell in ("lstm", "gru", "rnn") for mode in ("inference", "training")]
    rows = []
    for (where, dtype), ratios in sorted(latest.items(), key=lambda one: one[0][::-1], reverse=True):
        row = [f"{where}, {dtype}"]
        for kind in kinds:
            values = [value for problem, value in ratios.items() if (problem.cell, problem.mode) == kind]
            mean = statistics.geometric_mean(values) if values else 0
            row.append(f"{mean:.2f} ({min(values):.2f} of {len(values)})" if values else "")
        rows.append(row)
    return table(["`grid`", *(f"{cell.upper()} {mode}" for cell, mode in kinds)], rows)


def packed_lines(run: Run) -> str:
    """What packing costs torch, and what it costs us."""
    lines = []
    for problem, sides in run.problems():
        ratio = faster(sides.get("rnnkern", []), sides.get("torch.nn", []))
        padded = faster(sides.get("rnnkern padded", []), sides.get("rnnkern", []))
        if not ratio or not padded:
            continue
        ours, theirs = (micro(sides[side], problem.steps) for side in ("rnnkern", "torch.nn"))
        lines.append(
            f"- {problem.name}: {ours} µs a step against {theirs} ({digits(ratio.value)}×); "
            f"{padded.value / problem.useful:.2f} of our padded time × the useful fraction of its rows"
        )
    return "\n".join(lines)


def summary(run: Run) -> str:
    """One line a kind of work: the mean ratio against the better peer, the worst, and how many are slower.

    Where cuDNN's calls were also replayed as a CUDA graph, the mean ratio of our plain calls against those too.
    """
    groups: dict[tuple[str, str, str], list] = {}
    for problem, sides in run.problems():
        if found := against_better(sides):
            graphed = faster(sides.get("rnnkern", []), sides.get(GRAPHED, []))
            kind = (problem.mode, problem.cell.upper(), problem.dtype)
            groups.setdefault(kind, []).append((found[0], graphed, problem))
    with_graph = any(graphed for found in groups.values() for _, graphed, _ in found)
    rows = []
    for (mode, cell, dtype), found in groups.items():
        mean = statistics.geometric_mean(ratio.value for ratio, _, _ in found)
        worst, _, problem = min(found, key=lambda one: one[0].value)
        slower = sum(ratio.slower for ratio, _, _ in found)
        worst_words = f"{worst.value:.2f} ({short_name(problem).split(' ', 2)[2]})"
        row = [f"{cell} {mode}, {dtype}", str(len(found)), f"{mean:.2f}", worst_words, str(slower)]
        if with_graph:
            ratios = [graphed.value for _, graphed, _ in found if graphed]
            row.append(f"{statistics.geometric_mean(ratios):.2f}" if ratios else "")
        rows.append(row)
    head = ["work", "problems", "× the better peer, geometric mean", "worst", "slower"]
    return table([*head, *(["× cuDNN in a CUDA graph, ours without"] if with_graph else [])], rows)


def heading(run: Run) -> str:
    facts, arguments = run.results.environment, run.results.arguments
    count = len({row.repeat for row in run.results.rows})
    loads = [one["load"] for one in run.results.sittings] or [facts["load"]]
    name = run.machine
    return (
        f"`{run.what}`, {run.where}{'' if name in run.where else f' ({name})'}, torch {facts['torch']}, commit "
        f"{run.results.version}, {count} process{'es' if count > 1 else ''}, at most "
        f"{arguments.get('samples')} samples each; load when they began {min(loads):.1f} to {max(loads):.1f}"
    )


LEGEND = (
    "µs a time step: the median; ×: how many times faster rnnkern is, the median over pairs of samples that were "
    "taken right after each other; float32 and input size = H unless a row says otherwise, as is T 100. The better "
    "peer: the faster of torch.nn and ONNX Runtime, which does inference in float32 alone; in training, in bfloat16 "
    "and on a GPU torch.nn."
)


def pictures(run: Run, folder: str) -> list[str]:
    return [f"![{plot.kind}: {plot.title}]({folder}/{plot.name}.svg)" for plot in drawn(run)]


def newest_machine(found: list[Run]) -> list[Run]:
    """The runs of the machine that was measured last."""
    newest = max(found, key=lambda run: run.results.created).machine
    return [run for run in found if run.machine == newest]


def most_drawn(found: list[Run]) -> Run:
    """The run of which most is drawn, with the most threads, and the newest of such."""
    return max(found, key=lambda run: (sum(len(plot.points) for plot in drawn(run)), run.threads, run.results.created))


def section(found: list[Run]) -> str:
    """What stands between the two marks of README."""
    grid = [run for run in found if run.suite == "grid" and run.device == "cpu"]
    gpu = [run for run in found if run.suite == "gpu"]
    quick = [run for run in found if run.suite == "quick"]
    parts = [
        f"{LEGEND} All tables, plots, machines and commits: [RESULTS.md](benchmarks/RESULTS.md); what each goal asks, "
        "and why some are missed: [GOALS.md](benchmarks/GOALS.md)."
    ]
    if grid:
        parts += [
            "On a CPU, over all that was measured of `grid` (H 32 to 1024, B 1 to 256, bfloat16 B 1 and 16): × the "
            "better peer, geometric mean (the lowest of how many problems).",
            overview(grid),
            *pictures(most_drawn(newest_machine(grid)), "benchmarks/results/plots"),
        ]
    if quick:
        parts += [
            "µs a step, and in brackets how many times faster than torch.nn and, where it was measured, than ONNX "
            "Runtime; other machines stand in RESULTS.md.",
            quick_table(newest_machine(quick)),
        ]
    for run in gpu:
        parts += [
            f"{heading(run)} (slower: the 95 % interval of the ratio begins below {SLOWER}).",
            summary(run),
            *pictures(run, "benchmarks/results/plots"),
        ]
    if not gpu:
        parts.append("No GPU figure yet.")
    return "\n\n".join(part for part in parts if part) + "\n"


def results_text(found: list[Run]) -> str:
    parts = [
        "# Results",
        "Made by `make figures` from `benchmarks/results`; a test fails when it is stale.",
        f"{LEGEND} Slower: the 95 % interval of the ratio begins below {SLOWER}.",
    ]
    quick = [run for run in found if run.suite == "quick"]
    if quick:
        parts += ["## `quick`", "\n".join(f"- {heading(run)}" for run in quick), *quick_tables(quick)]
    for run in found:
        if run.suite == "packed":
            parts += ["## Packed training, where torch slices every step", f"{heading(run)}:", packed_lines(run)]
    for suite in dict.fromkeys(run.suite for run in found):
        if suite not in ("grid", "shapes", "deepbench", "gpu"):
            continue
        parts.append(f"## `{suite}`")
        for run in found:
            if run.suite == suite:
                parts += [f"{heading(run)}:", summary(run), *pictures(run, "results/plots")]
    return "\n\n".join(part for part in parts if part) + "\n"


def drawn(run: Run) -> list[plots.Plot]:
    """Of float32 alone, lest there be a dozen; the HTML report has all."""
    if run.suite not in ("grid", "gpu"):
        return []
    found = [plot for plot in plots.plots_of(run.results, run.name) if plot.points[0].problem.dtype == "float32"]
    return [plot for plot in found if plot.kind == "ratios" or plot.points[0].problem.mode == "inference"]


def parts_of(readme: str) -> tuple[str, str, str]:
    """Before the figures, the figures, after them."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must have one line {BEGIN} and one {END}")
    before, rest = readme.split(BEGIN + "\n")
    inside, after = rest.split(END)
    return before, inside, after


def texts(found: list[Run]) -> dict[Path, str]:
    before, _, after = parts_of(README.read_text(encoding="utf-8"))
    return {
        README: before + BEGIN + "\n" + section(found) + END + after,
        RESULTS: results_text(found),
        goals.OUT: goals.text(found),
    }


def stale(found: list[Run]) -> list[str]:
    """Files that are not what the results make of them."""
    wanted = {f"{plot.name}.svg": plot.digest for run in found for plot in drawn(run)}
    names = [name for name, digest in wanted.items() if plots.digest_in(PLOTS / name) != digest]
    names += [path.name for path in PLOTS.glob("*.svg") if path.name not in wanted]
    for path, text in texts(found).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            names.append(path.name)
    return sorted(names)


def write(found: list[Run]) -> None:
    for path, text in texts(found).items():
        path.write_text(text, encoding="utf-8")
    drawings = [plot for run in found for plot in drawn(run)]
    for path in PLOTS.glob("*.svg"):
        path.unlink()
    if drawings:
        plots.write(drawings, PLOTS, png=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    found = runs()
    if args.check:
        names = stale(found)
        print(f"stale, run make figures: {', '.join(names)}" if names else "up to date")
        return int(bool(names))
    write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
