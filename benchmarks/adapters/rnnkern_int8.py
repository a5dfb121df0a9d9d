"""This library's int8 weights."""

from __future__ import annotations

from collections.abc import Callable

from suites import Data

from . import layer, refuse, rnnkern_layer
from .torch_int8 import TOLERANCE  # noqa: F401 - the same for both

NAME = "rnnkern int8"
INSTALL = f"{rnnkern_layer.INSTALL} (a version with quantize_dynamic)"


def load() -> None:
    from rnnkern import quantize_dynamic  # noqa: F401


def build(data: Data) -> Callable[[int], object]:
    import rnnkern

    problem = data.problem
    refuse(
        NAME,
        {
            "inference alone": problem.mode == "training",
            "float32 activations alone": problem.dtype != "float32",
            "on the CPU alone": problem.device != "cpu",
        },
    )
    quantised = rnnkern.quantize_dynamic(rnnkern_layer.make_layer(data))
    if problem.mode == "step":
        return layer.step(quantised.step, [x[0] for x in data.inputs], data)
    options = {} if data.reset_mask is None else {"reset_mask": data.reset_mask}
    return layer.inference(quantised, data, **options)
