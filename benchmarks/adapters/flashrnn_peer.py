"""FlashRNN on a GPU. It has the recurrence alone: the input product is torch's, and counts on its side too.

An LSTM's gates are torch's; of a GRU it wants the recurrent ones n, r, z, and biases of those and of the input's n.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from suites import GATES, Data

from . import cells, layer, refuse

NAME = "flashrnn"
INSTALL = "pip install flashrnn, and nvcc: it compiles its kernels for every size"
ASK = "it compiles its kernels for every size"
FUNCTIONS = {"lstm": "lstm", "gru": "gru", "rnn": "elman"}
BACKENDS = {"lstm": "cuda_fused", "gru": "cuda", "rnn": "cuda_fused"}
DEVICE = "cuda"


def load() -> None:
    import flashrnn  # noqa: F401


class FlashRNN(nn.Module):
    """Holds a torch layer's own parameters, so that gradients need no translation."""

    def __init__(self, theirs: nn.RNNBase, cell: str):
        super().__init__()
        self.theirs, self.cell = theirs, cell

    def recurrent(self) -> tuple[Tensor, Tensor]:
        """Weights ``[G, 1, H, H]`` and biases ``[G', 1, H]`` as it takes them."""
        theirs, hidden = self.theirs, self.theirs.hidden_size
        weight, bias_ih, bias_hh = theirs.weight_hh_l0, theirs.bias_ih_l0, theirs.bias_hh_l0
        if self.cell == "gru":
            weight = weight.roll(hidden, 0)  # r, z, n → n, r, z
            (r, z, n), (h_r, h_z, h_n) = bias_ih.chunk(3), bias_hh.chunk(3)
            bias = torch.cat([h_n, r + h_r, z + h_z, n])
        else:
            bias = bias_ih + bias_hh
        return weight.view(-1, 1, hidden, hidden), bias.view(-1, 1, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        from flashrnn import flashrnn

        steps, batch, _ = x.shape
        gates = torch.nn.functional.linear(x, self.theirs.weight_ih_l0).transpose(0, 1)
        gates = gates.reshape(batch, steps, GATES[self.cell], 1, -1)
        weight, bias = self.recurrent()
        name = str(x.dtype).removeprefix("torch.")
        states, last = flashrnn(
            gates, weight, bias, function=FUNCTIONS[self.cell], backend=BACKENDS[self.cell], dtype=name
        )  # [S, B, T, 1, H]
        y = states[0, :, :, 0].transpose(0, 1)
        return y, tuple(state[:, -1, 0].unsqueeze(0) for state in last)


def build(data: Data) -> Callable[[int], object]:
    problem = data.problem
    reasons = {
        "on CUDA alone": torch.device(problem.device).type != DEVICE,
        "no step": problem.mode == "step",
        "no reset mask": problem.reset > 0,
        "no float64": problem.dtype == "float64",
        **cells.plain(problem),
    }
    refuse(NAME, reasons)
    return getattr(layer, problem.mode)(FlashRNN(data.layer, problem.cell), data)
