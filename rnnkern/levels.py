"""A `torch.autograd.Function` under transforms of `torch.func`: one level of them at a time, the innermost first.

`Function.apply` refuses the form that `autograd.py` uses. The other form, with `setup_context`, costs more everywhere,
and most of all here, where torch takes the arguments apart and puts them together several times a level.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkern.ops import Tensors
from rnnkern.torch_private import (
    FunctionalizeLevel,
    VmapLevel,
    apply_at_level,
    forward_mode_enabled,
    innermost_level,
    set_forward_mode,
    unwrap_batched,
    unwrap_dead,
    unwrap_for_gradient,
    wrap_batched,
    wrap_for_gradient,
)

Dims = Sequence[int | None]
Results = tuple[Tensor, ...]


class _Modes(threading.local):
    """Around a Function's forward torch turns both off, which is meant for its level alone: what they were outside."""

    gradient = forward = True


_outside = _Modes()


def functionalized() -> bool:
    """Whether the innermost level is that of `torch.func.functionalize`."""
    return isinstance(innermost_level(), FunctionalizeLevel)


def apply(
    function: type[torch.autograd.Function],
    rule: Callable[..., tuple[Results, Dims]],
    again: Callable[..., Results],
    arguments: tuple[Any, ...],
    tensors: Tensors,
) -> Results:
    """What the innermost level makes of `again(*arguments, tensors)`, which goes on with the next.

    Args:
        function: differentiates, at the levels of `grad`, `vjp`, `jvp`; its forward calls `again` through `below`.
        rule: for a level of `vmap`, `(*arguments, tensors, dims, size)` -> results, and where each of them has the
            vmapped dimension.
    """
    level = innermost_level()
    tensors = [t if t is None else unwrap_dead(t) for t in tensors]
    if not isinstance(level, VmapLevel):
        before = _outside.gradient, _outside.forward
        _outside.gradient, _outside.forward = torch.is_grad_enabled(), forward_mode_enabled()
        try:
            return apply_at_level(level, function, arguments, tensors)
        finally:
            _outside.gradient, _outside.forward = before
    number = level.level()
    pairs = [(None, None) if t is None else unwrap_batched(t, number) for t in tensors]
    tensors, dims = zip(*pairs, strict=True)
    with level.lower():
        if all(dim is None for dim in dims):
            return again(*arguments, tensors)
        results, places = rule(*arguments, tensors, dims, level.batch_size())
    return tuple(r if d is None else wrap_batched(r, d, number) for r, d in zip(results, places, strict=True))


def below(again: Callable[..., Results], arguments: tuple[Any, ...], tensors: Tensors) -> Results:
    """`again(*arguments, tensors)` without the innermost level."""
    level = innermost_level()
    number = level.level()
    tensors = [t if t is None else unwrap_for_gradient(t, number) for t in tensors]
    with torch.set_grad_enabled(_outside.gradient), set_forward_mode(_outside.forward), level.lower():
        results = again(*arguments, tensors)
    return tuple(wrap_for_gradient(r, number) for r in results)
