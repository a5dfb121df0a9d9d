"""Calls of layers and cells past the operators, and past autograd but for a cell's: what prepares a call for those
takes longer than 100 small steps. Taken only where nobody would notice; everything else goes the long way, through
`autograd.layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkern import _C, int8
from rnnkern.autograd import CellStep
from rnnkern.torch_private import GLOBAL_HOOKS, MODULE_HOOKS, dual_level

# What arguments that are not what a layer takes make the kernels' call raise.
REFUSALS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
# Attributes of a layer: what they hold runs beside its forward, or makes a step impossible.
EMPTY_IN_A_PLAIN_LAYER = ("bidirectional", *MODULE_HOOKS)


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
    """The kernels alone, on `x [T, B, I]`: `(output, hx)`.

    Returns:
        None where a gradient is needed, where something would notice (compilation, transforms, modes, autocast,
        tracing, subclasses of tensors), or where something is wrong with the arguments: the long way says what.
    """
    if torch.compiler.is_compiling() or dual_level():
        return None
    try:
        return _C.infer(x, weights, hx, cell, num_layers, bidirectional, batch_first, heads, zoneout)
    except REFUSALS:
        return None


def infer_step(
    layer: Any, forward: Callable[..., Any], x: Tensor, hx: Any, weights: int8.Weights | None = None
) -> tuple[Tensor, Any] | None:
    """One step `[B, I]` or `[I]` by a layer's parameters, or by `weights`: `(output, hx)`.

    Returns:
        None as from `infer`, where a call of the layer would run more than the method `forward`, and where its
        parameters are made of others.
    """
    if torch.compiler.is_compiling() or dual_level() or any(GLOBAL_HOOKS):
        return None
    try:
        return _C.infer_step(layer, forward, EMPTY_IN_A_PLAIN_LAYER, x, hx, weights)
    except REFUSALS:
        return None


def run_cell(module: Any, cell: str, x: Tensor, hx: Any) -> Any:
    """The new states of a cell module from `x [B, I]` or `[I]`, with gradients where they are needed.

    Returns:
        None as from `infer`, but for gradients, and where parameters are made of others.
    """
    if torch.compiler.is_compiling() or dual_level():
        return None
    try:
        result = _C.run_cell(module, cell, x, hx)
    except REFUSALS:
        return None
    if result is None:
        return None
    states, kept = result
    return states if kept is None else CellStep.apply(cell, [states], *kept)
