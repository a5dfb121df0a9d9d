"""A layer as a loop over cells, torch's own or a library's, which share its parameters: what those that loop have in
common."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from suites import Data, Problem

from . import layer

CELLS = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell"}
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def plain(problem: Problem) -> dict[str, bool]:
    """What a loop over cells of one layer and one direction leaves out."""
    return {
        "one layer and one direction alone": problem.layers > 1 or problem.bidirectional,
        "no projection": problem.projection > 0,
        "no packed sequences": problem.packed,
    }


def cell_of(data: Data, library: ModuleType = nn) -> nn.Module:
    theirs, problem = data.layer, data.problem
    cell = getattr(library, CELLS[problem.cell])(problem.hidden, problem.hidden, device="meta")
    for name in NAMES:
        setattr(cell, name, getattr(theirs, f"{name}_l0"))
    return cell.train(theirs.training)


def zeros(x: Tensor, problem: Problem) -> tuple[Tensor, ...]:
    """The initial state, each ``[B, H]``."""
    h = x.new_zeros(problem.batch, problem.hidden)
    return (h, torch.zeros_like(h)) if problem.cell == "lstm" else (h,)


def advance(cell: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    after = cell(x, state if len(state) > 1 else state[0])
    return after if isinstance(after, tuple) else (after,)


class Loop(nn.Module):
    """``run(x, state) -> (y, state)`` over a whole sequence, called as a layer is."""

    def __init__(self, run: Callable, cell: nn.Module, problem: Problem):
        super().__init__()
        self.run, self.cell, self.problem = run, cell, problem

    def forward(self, x: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
        if state is None:
            state = zeros(x, self.problem)
        else:
            state = tuple(s[0] for s in (state if isinstance(state, tuple) else (state,)))
        y, state = self.run(x, state)
        return y, tuple(s.unsqueeze(0) for s in state)


def build(run: Callable, cell: nn.Module, data: Data) -> Callable[[int], object]:
    loop = Loop(run, cell, data.problem)
    if data.problem.mode == "step":
        return layer.step(loop, data.inputs, data)
    return getattr(layer, data.problem.mode)(loop, data)


def loop(cell: nn.Module, data: Data) -> Callable[[int], object]:
    """A call of the cell for each time step."""

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = []
        for x_t in x:
            state = advance(cell, x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    return build(run, cell, data)
