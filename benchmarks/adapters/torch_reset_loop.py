"""A loop over ``torch.nn``'s cells that sets the state to zero where a new segment starts: what a user would write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites import Data

from . import cells, refuse

NAME = "torch reset loop"
INSTALL = "pip install torch"


def load() -> None:
    import torch.nn  # noqa: F401


def build(data: Data) -> Callable[[int], object]:
    refuse(NAME, {"for problems with resets": data.reset_mask is None, **cells.plain(data.problem)})
    cell = cells.cell_of(data)
    keep = [mask.logical_not().unsqueeze(1) for mask in data.reset_mask]

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = []
        for x_t, keep_t in zip(x, keep, strict=True):
            state = cells.advance(cell, x_t, tuple(s * keep_t for s in state))
            outputs.append(state[0])
        return torch.stack(outputs), state

    return cells.build(run, cell, data)
