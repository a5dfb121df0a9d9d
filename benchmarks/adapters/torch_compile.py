"""A loop over ``torch.nn``'s cells under ``torch.compile``: some steps a graph: one of all compiles too long."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites import Data

from . import cells, refuse

NAME = "torch.compile"
INSTALL = "pip install torch, and a C++ compiler"
ASK = "it compiles for about a minute a problem"
UNROLLED = 10  # steps a graph at most
BACKEND = "inductor"


def load() -> None:
    import torch._dynamo  # noqa: F401


def build(data: Data) -> Callable[[int], object]:
    problem = data.problem
    refuse(NAME, {"no reset mask": problem.reset > 0, **cells.plain(problem)})
    cell = cells.cell_of(data)
    steps = next(k for k in range(min(UNROLLED, problem.steps), 0, -1) if problem.steps % k == 0)

    def unrolled(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = []
        for t in range(steps):
            state = cells.advance(cell, x[t], state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    torch._dynamo.reset()  # or the many problems of a run exhaust its cache
    compiled = torch.compile(unrolled, backend=BACKEND, fullgraph=True, dynamic=False)

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        parts = []
        for part in x.split(steps):
            y, state = compiled(part, state)
            parts.append(y)
        return torch.cat(parts), state

    return cells.build(run, cell, data)
