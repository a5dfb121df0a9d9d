"""Derivatives that no kernel computes: those of `reference.layer`, the definition of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnkern import reference
from rnnkern.ops import WEIGHTS, Options, Tensors
from rnnkern.torch_private import set_forward_mode, transforms_active


def reference_results(options: Options, tensors: Tensors) -> tuple[Tensor, ...]:
    """`(y, h_n)`, with an LSTM `(y, h_n, c_n, cells)`."""
    arguments = (tensors[0], tensors[WEIGHTS:], *tensors[1:WEIGHTS], options.zoneout)
    named = {name: getattr(options, name) for name in ("cell", "bidirectional", "heads", "ensemble")}
    results = reference.layer(*arguments, **named)
    return tuple(r for r in results if r is not None)


def reference_gradients(ctx: Any, tensors: Tensors, places: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """The backward operator as a function of `tensors[places]`; `tensors`: the results' gradients, then forward's."""
    inputs = [4 + p for p in (0, 1, 2, *range(WEIGHTS, len(tensors) - 4))]
    wanted = [p for p, need in zip(inputs, ctx.needs, strict=True) if need]

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = replaced(tensors, places, values)

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            return reference_results(ctx.options, replaced(arguments, wanted, values)[4:])

        results, pullback = vjp(function, [arguments[p] for p in wanted])
        return pullback(dense(arguments[: len(results)], results))

    return gradients


def vjp(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """The function's results, and what takes their gradients to the primals' gradients, zero where there is none."""
    if transforms_active():
        return torch.func.vjp(function, *primals)  # type: ignore[return-value]
    # Outside of transforms by torch.autograd, as torch.func refuses to run under hooks on saved tensors. Every primal
    # gets a node of its own: one may depend on another through the graph outside, which is not differentiated here.
    with torch.enable_grad():
        inputs = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in primals]
        results = function(*inputs)

    def pullback(cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
        if not pairs:
            return tuple(map(torch.zeros_like, inputs))
        outputs, incoming = zip(*pairs, strict=True)
        create_graph = torch.is_grad_enabled()
        return torch.autograd.grad(outputs, inputs, incoming, create_graph=create_graph, materialize_grads=True)

    return results, pullback


def jvp(
    function_of: Callable[[Tensors, Sequence[int]], Callable[..., tuple[Tensor, ...]]],
    tensors: Tensors,
    tangents: Tensors,
) -> tuple[Tensor, ...]:
    """The vjp of the vjp, which is linear in its cotangent: forward mode cannot be nested inside forward mode.

    torch turns forward mode off around a Function's `jvp`: an outer `jvp` would silently be zero.
    """
    with set_forward_mode(True):
        tensors = [t if t is None or not t.is_floating_point() else forward_ad.unpack_dual(t).primal for t in tensors]
        places = [place for place, tangent in enumerate(tangents) if tangent is not None]
        results, pullback = vjp(function_of(tensors, places), [tensors[p] for p in places])
        _, transposed = vjp(lambda *cotangents: pullback(cotangents), [torch.zeros_like(r) for r in results])
        found = transposed(tuple(tangents[p] for p in places))
        if transforms_active() or any(t is not None and t.requires_grad for t in (*tensors, *tangents)):
            return found
        return tuple(t.detach() for t in found)  # the leaves that vjp() made are nobody else's


def replaced(tensors: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    result = list(tensors)
    for place, value in zip(places, values, strict=True):
        result[place] = value
    return result


def dense(gradients: Tensors, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros for what is None."""
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, like, strict=True))
