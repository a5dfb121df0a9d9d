"""torch's dynamic int8 LSTM and GRU on the CPU: int8 weights, inputs and states quantised at every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from suites import CLASSES, Data

from . import layer, refuse

NAME = "torch int8"
INSTALL = "pip install torch"
TOLERANCE = 0.05  # 8 bits a weight and 7 an activation: about one per cent of a gate, which the recurrence adds up


def load() -> None:
    if not any(engine != "none" for engine in torch.backends.quantized.supported_engines):
        raise ImportError("this torch has no quantised engine")


def build(data: Data) -> Callable[[int], object]:
    problem = data.problem
    refuse(
        NAME,
        {
            "inference alone": problem.mode == "training",
            "float32 activations alone": problem.dtype != "float32",
            "on the CPU alone": problem.device != "cpu",
            "LSTM and GRU alone": problem.cell == "rnn",
            "no projection": problem.projection > 0,
            "no reset mask": problem.reset > 0,
        },
    )
    model = torch.nn.ModuleList([data.layer])  # the root itself is not replaced
    with warnings.catch_warnings():  # that it will move to another package
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {CLASSES[problem.cell]}, dtype=torch.qint8)[0]
    if problem.mode == "step":
        return layer.step(quantised, data.inputs, data)
    return layer.inference(quantised, data)
