"""What a layer or a cell computes in under `torch.autocast`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from rnnkern import _C, checks
from rnnkern.torch_private import transforms_active


def applies_to(x: Tensor) -> bool:
    """Whether a call on `x` computes in autocast's dtype; double stays double, as in torch."""
    device = "cpu" if x.is_cpu else x.device.type
    return device in checks.BACKENDS[:-1] and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def cast(
    x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor], cache: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Sequence[Tensor]]:
    """Everything in autocast's dtype.

    Args:
        cache: parameters are cast once within autocast's region, as torch's cells have it, and not at every step, whose
            copies would be kept for backward.
    """
    dtype = torch.get_autocast_dtype(x.device.type)

    def low(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    def low_once(weight: Tensor) -> Tensor:
        if type(weight) is Parameter and weight.requires_grad:
            found = _C.cached_cast(weight)
            if found.requires_grad:  # else it was cast where no gradient was wanted
                return found
        return low(weight)

    h_0 = None if h_0 is None else low(h_0)
    c_0 = None if c_0 is None else low(c_0)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or transforms_active()
    low_weight = low_once if cache and torch.is_grad_enabled() and not traced else low
    return low(x), h_0, c_0, [w if w is None else low_weight(w) for w in weights]
