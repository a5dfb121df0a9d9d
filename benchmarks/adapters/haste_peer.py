"""Haste on a GPU: float32 LSTM and GRU with weights transposed and in an order of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites import Data

from . import cells, layer, refuse

NAME = "haste_pytorch"
INSTALL = "pip install haste_pytorch, with nvcc there"
GATES = {"lstm": [0, 2, 1, 3], "gru": [1, 0, 2]}  # of torch's, in its order; each order is its own inverse
DEVICE = "cuda"


def load() -> None:
    import haste_pytorch  # noqa: F401


def build(data: Data) -> Callable[[int], object]:
    problem = data.problem
    reasons = {
        "on CUDA alone": torch.device(problem.device).type != DEVICE,
        "float32 alone": problem.dtype != "float32",
        "LSTM and GRU alone": problem.cell == "rnn",
        "no reset mask": problem.reset > 0,
        **cells.plain(problem),
    }
    refuse(NAME, reasons)
    import haste_pytorch

    kind = haste_pytorch.LSTM if problem.cell == "lstm" else haste_pytorch.GRU
    theirs = kind(problem.hidden, problem.hidden)
    theirs.from_native_weights(*(weight.detach() for weight in data.weights))
    theirs.to(problem.device).requires_grad_(problem.mode == "training").train(problem.mode == "training")
    if problem.mode == "step":
        return layer.step(theirs, data.inputs, data)
    call = getattr(layer, problem.mode)(theirs, data)
    if problem.mode == "training":
        call.results = lambda raw: [*raw[:2], *gradients(raw[2:], problem.cell)]
    return call


def gradients(raw: list[Tensor], cell: str) -> list[Tensor]:
    """Of weight_ih, weight_hh, bias_ih, bias_hh; its LSTM has one bias, the sum of torch's two."""

    def reorder(gradient: Tensor) -> Tensor:
        chunks = gradient.chunk(len(GATES[cell]), dim=-1)
        return torch.cat([chunks[gate] for gate in GATES[cell]], dim=-1)

    kernel, recurrent, *biases = (reorder(gradient) for gradient in raw)
    return [kernel.t(), recurrent.t(), biases[0], biases[-1]]
