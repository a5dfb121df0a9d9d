"""GOALS.md: every goal beside what was measured, from the committed results. ``readme.py`` writes it.

A goal is about some problems; its line shows the worst of them. A ratio is the median over pairs of samples that were
taken right after each other; "nowhere slower" asks the lower end of its bootstrap 95 % interval to be at least 0.95,
over at least 30 pairs from 3 processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from committed import FOLDER, Run
from goal import Case, Goal
from goals_cpu import CPU
from goals_gpu import GPU
from stats import LEAST_PAIRS, LEAST_PROCESSES, SLOWER
from suites import Problem

OUT = Path(__file__).with_name("GOALS.md")


@dataclass(frozen=True)
class Line:
    """One goal on one machine with one number of threads."""

    goal: Goal
    where: str
    found: list[tuple[float, str]]  # value, problem
    cases: int

    @property
    def worst(self) -> tuple[float, str]:
        return (min if self.goal.least is not None else max)(self.found)

    def cells(self) -> list[str]:
        goal = self.goal
        if not self.found:
            why = "not measured" if not self.cases else f"not measured well enough ({self.cases} problems)"
            return [goal.work, goal.wanted, self.where, why, ""]
        value, name = self.worst
        number = f"{value:.2f}{goal.unit}"
        met = sum(goal.met(one) for one, _ in self.found)
        verdict = "met" if met == len(self.found) else f"**not met**: {met} of {len(self.found)} do"
        if len(self.found) < self.cases:
            verdict += f"; {self.cases - len(self.found)} not measured well enough"
        return [goal.work, goal.wanted, self.where, f"{number} ({name})", verdict]


def lines(goals: list[Goal], found: list[Run]) -> list[Line]:
    """A problem that stands in several runs counts once, as the latest has it that can say."""
    in_order = sorted(found, key=lambda run: run.results.created)
    cases = [Case(problem, sides, run) for run in in_order for problem, sides in run.problems()]
    result = []
    for goal in goals:
        places: dict[str, dict[Problem, float | None]] = {run.where: {} for run in found}
        for case in cases:
            if goal.about(case):
                here = places[case.run.where]
                value = goal.missed if case.failed else goal.value(case)
                here[case.problem] = here.get(case.problem) if value is None else value
        places = {where: here for where, here in places.items() if here}
        for where, here in places.items():
            values = [(value, problem.name) for problem, value in here.items() if value is not None]
            result.append(Line(goal, where, values, len(here)))
        if not places:
            result.append(Line(goal, "", [], 0))
    return result


def table(goals: list[Goal], found: list[Run]) -> str:
    rows = [["work", "goal", "where", "the worst that was measured", ""], ["---"] * 5]
    rows += [line.cells() for line in lines(goals, found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def text(found: list[Run], notes: Path = FOLDER / "notes.md") -> str:
    """``notes``: what people have to say of goals that are not met; it stands below the tables."""
    cpu, gpu = ([run for run in found if run.device == kind] for kind in ("cpu", "cuda"))
    files = "\n".join(
        f"- {run.where}: suite `{run.what}`, {', '.join(f'`{name}`' for name in run.files)}, commit "
        f"{run.results.version}{'' if run.results.complete else ', not complete'}"
        for run in found
    )
    return f"""# Goals, and what was measured

Made by `make figures` from `benchmarks/results`; a test fails when it is stale. Each line shows the worst problem of
those that the goal is about. "better peer": the better of torch.nn and ONNX Runtime. A ratio is the median over pairs
of samples that were taken right after each other. Floors are computed from what the same machine was measured to do.
"Nowhere slower": the lower end of the bootstrap 95 % interval of the median ratio is at least {SLOWER}, over at least
{LEAST_PAIRS} pairs from {LEAST_PROCESSES} processes together; lines that ask it show that lower end. "Not measured well
enough": fewer pairs or processes, no row of the peer or of our float32 in that run, or a time below the computed floor,
which then was measured too high.
"7 of 8 do": so many of the problems meet the goal; one that stands in several files counts once, by the latest.

## CPU

{table(CPU, cpu)}
## GPU

{table(GPU, gpu)}
{notes.read_text(encoding="utf-8") if notes.exists() else ""}## Results

{files or "none"}
"""
