"""Calls that need no gradient, past autograd and the dispatcher: what prepares a call for those takes longer than 100
small steps. Taken only where nobody would notice; everything else goes the long way, through `autograd.layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkern import _C, int8
from rnnkern.checks import initial_states
from rnnkern.torch_private import dual_level


def infer(
    cell: str,
    x: Tensor,
    hx: Any,
    weights: Sequence[Tensor] | int8.Weights,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    heads: int,
    zoneout: float,
) -> tuple[Tensor, Any] | None:
    """The kernels alone, on `x [T, B, I]` or one step `[B, I]`: `(output, hx)`.

    Returns:
        None where a gradient is needed, where something would notice (compilation, transforms, modes, autocast,
        tracing, subclasses of tensors), or where something is wrong with the arguments: the long way says what.
    """
    if torch.compiler.is_compiling() or dual_level():
        return None
    try:
        h_0, c_0 = initial_states(hx, cell)
        if not isinstance(weights, int8.Weights):
            return _C.infer(x, weights, h_0, c_0, cell, num_layers, bidirectional, batch_first, heads, zoneout)
        if x.shape[-1] != weights.input_size:  # packed weights are as wide as the next multiple of four
            return None
        return _C.infer(
            x, weights.packed, h_0, c_0, cell, num_layers, bidirectional, batch_first, heads, zoneout, weights.biases,
            weights.hidden_size, weights.proj_size,
        )  # fmt: skip
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
