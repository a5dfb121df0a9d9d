"""torchrl's ``LSTMModule`` and ``GRUModule``, for sequences with several episodes: it splits them and pads.

Its final states are not to be trusted where an episode ends, says its documentation, so the output alone is checked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites import Data

from . import refuse

NAME = "torchrl"
INSTALL = "pip install torchrl"


def load() -> None:
    import torchrl.modules  # noqa: F401


def build(data: Data) -> Callable[[int], list[Tensor]]:
    from tensordict import TensorDict
    from torchrl.modules import GRUModule, LSTMModule

    problem = data.problem
    reasons = {
        "for problems with resets": data.reset_mask is None,
        "no step": problem.mode == "step",
        "LSTM and GRU alone": problem.cell == "rnn",
        "one layer and one direction alone": problem.layers > 1 or problem.bidirectional,
        "no projection": problem.projection > 0,
    }
    refuse(NAME, reasons)
    kind, states = (LSTMModule, ["h", "c"]) if problem.cell == "lstm" else (GRUModule, ["h"])
    module = kind(
        input_size=problem.hidden,
        hidden_size=problem.hidden,
        in_keys=["x", *states],
        out_keys=["y", *(("next", s) for s in states)],
        device=problem.device,
        default_recurrent_mode=True,
    )
    inner = getattr(module, problem.cell)
    inner.to(data.layer.weight_ih_l0).load_state_dict(data.layer.state_dict())
    inner.requires_grad_(problem.mode == "training").train(data.layer.training)
    weights = list(inner.parameters())
    starts = data.reset_mask.t().unsqueeze(2).contiguous()
    inputs = [x.transpose(0, 1).contiguous().requires_grad_(problem.mode == "training") for x in data.inputs]
    d_y = data.d_y.transpose(0, 1).contiguous()

    def forward(x: Tensor) -> Tensor:
        sequences = TensorDict({"x": x, "is_init": starts}, [problem.batch, problem.steps], device=x.device)
        return module(sequences)["y"]

    def inference(i: int) -> list[Tensor]:
        return [forward(inputs[i % len(inputs)])]

    def training(i: int) -> list[Tensor]:
        x = inputs[i % len(inputs)]
        y = forward(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *weights], d_y)]

    call = training if problem.mode == "training" else inference

    def results(raw: list[Tensor]) -> list[Tensor | None]:  # batch first
        if problem.mode == "training":
            return [raw[0].transpose(0, 1), raw[1].transpose(0, 1), *raw[2:]]
        return [raw[0].transpose(0, 1), *(None for _ in states)]

    call.results = results
    return call
