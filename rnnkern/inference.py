"""Calls that need no gradient, past autograd and the dispatcher: what prepares a call for those takes longer than 100
small steps. Taken only where nobody would notice; everything else goes the long way, through `autograd.layer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rnnkern import _C
from rnnkern.torch_private import (
    autocast_enabled,
    dispatch_modes,
    dual_level,
    function_modes,
    tracing,
    transforms_active,
)

_PLAIN = (Tensor, Parameter)


def infer(
    cell: str,
    x: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    heads: int,
    zoneout: float,
) -> tuple[Tensor, Any] | None:
    """The kernels alone, on `x [T, B, I]` or one step `[B, I]`: `(output, hx)`.

    Returns:
        None where a gradient is needed, where something would notice, or where something is wrong with the arguments:
        the long way says what.
    """
    if not _unnoticed():
        return None
    try:
        h_0, c_0 = (None, None) if hx is None else (hx[0], hx[1]) if cell == "lstm" else (hx, None)
        if not _without_gradients((x, h_0, c_0, *weights)):
            return None
        y, h_n, c_n = _C.infer(x, weights, h_0, c_0, cell, num_layers, bool(bidirectional), batch_first, heads, zoneout)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return y, h_n if c_n is None else (h_n, c_n)


def _unnoticed() -> bool:
    """Whether nothing compiles, casts, transforms or watches a call."""
    return not (
        torch.compiler.is_compiling()
        or autocast_enabled()
        or transforms_active()
        or dispatch_modes()
        or function_modes()
        or tracing()
        or dual_level()
    )


def _without_gradients(tensors: Iterable[Tensor | None]) -> bool:
    """Whether these are tensors as they come, and no gradient will be asked for."""
    differentiable = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or (differentiable and tensor.requires_grad)):
            return False
    return True
