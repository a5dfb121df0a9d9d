"""What `torch.vmap` makes of the operators' arguments: a larger batch, or an ensemble.

Where the weights are shared, the vmapped dimension `V` becomes part of the batch (*fold*). Where they are not, every
tensor gets it in front, and the operator runs its members as groups (*stack*).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkern.ops import WEIGHTS, Options, Tensors
from rnnkern.torch_private import older_vmap_batched, older_vmap_enter, older_vmap_leave

# The batch dimension of `tensors`, of the four results, and of what backward reads of them: y, cells, gates.
TENSORS = (1, 1, 1, 0, 1, None, 1, 2, 2)
RESULTS = (1, 1, 1, 2)
KEPT = (1, 2, 2)
BACKWARD = (*RESULTS, *KEPT, *TENSORS)  # of all that backward is given: the results' gradients first


def check_batch_sizes(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("batch_sizes: expected one tensor for the whole of a vmap, got a batched one")


def foldable(options: Options, tensors: Tensors, dims: Sequence[int | None]) -> bool:
    """Whether the vmapped dimension can become part of the batch: packed rows and members' weights cannot."""
    shared = all(dim is None for dim in dims[WEIGHTS:])
    return shared and not options.ensemble and tensors[5] is None


def _leading(tensor: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """The vmapped dimension moved to `to`, made where there is none."""
    if dim is not None:
        return tensor.movedim(dim, to)
    return tensor.unsqueeze(to).expand(*tensor.shape[:to], size, *tensor.shape[to:])


def inner_shape(x: Tensor, dim: int | None) -> list[int]:
    """Apart from the vmapped dimension: `[T, B, I]` of x, of an ensemble `[members, T, B, I]`."""
    shape = list(x.shape)
    if dim is not None:
        del shape[dim]
    return shape


def fold(
    tensors: Tensors, dims: Sequence[int | None], batch_dims: Sequence[int | None], size: int
) -> list[Tensor | None]:
    """`[..., B, ...]` vmapped -> `[..., V * B, ...]`; the weights stay."""
    batch_dims = (*batch_dims, *(None,) * (len(tensors) - len(batch_dims)))
    return [
        t if t is None or to is None else _leading(t, dim, to, size).flatten(to, to + 1)
        for t, dim, to in zip(tensors, dims, batch_dims, strict=True)
    ]


def unfold(
    results: Sequence[Tensor], there: Sequence[bool], batch_dims: Sequence[int], size: int, batch: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    dims = tuple(dim if known else None for known, dim in zip(there, batch_dims, strict=True))
    unfolded = (r if d is None else r.unflatten(d, (size, batch)) for r, d in zip(results, dims, strict=True))
    return tuple(unfolded), dims


def stack(tensors: Tensors, dims: Sequence[int | None], ensemble: bool, size: int, keep: int) -> list[Tensor | None]:
    """Every tensor but the one at `keep` with the vmapped dimension in front, merged with an ensemble's."""
    members = [
        t if t is None or place == keep else _leading(t, dim, 0, size)
        for place, (t, dim) in enumerate(zip(tensors, dims, strict=True))
    ]
    if ensemble:
        members = [t if t is None or place == keep else t.flatten(0, 1) for place, t in enumerate(members)]
    return members


def unstack(
    results: Sequence[Tensor], there: Sequence[bool], ensemble: bool, size: int, members: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    dims = tuple(0 if known else None for known in there)
    if ensemble:
        results = [r.unflatten(0, (size, members)) if known else r for r, known in zip(results, there, strict=True)]
    return tuple(results), dims


def members_of_one(tensors: Tensors, batch_dims: Sequence[int | None]) -> list[Tensor | None]:
    """A batch with shared weights as an ensemble: each sample a member, whose batch is that sample alone."""
    batch_dims = (*batch_dims, *(None,) * (len(tensors) - len(batch_dims)))
    size = next(t.shape[d] for t, d in zip(tensors, batch_dims, strict=True) if t is not None and d is not None)
    return [
        t if t is None else _leading(t, None, 0, size) if d is None else t.unsqueeze(d + 1).movedim(d, 0)
        for t, d in zip(tensors, batch_dims, strict=True)
    ]


def batch_of_members(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Of `members_of_one`, gradients of `(x, h_0, c_0)` as a batch's, of the weights as each sample's."""
    states = (g.movedim(0, 1).flatten(1, 2) if need else g for g, need in zip(gradients[:3], needs[:3], strict=True))
    return *states, *gradients[3:]


# --- torch's older vmap -----------------------------------------------------------------------------------------------

Derivative = Callable[..., tuple[Tensor | None, ...]]


def handing_over(derivative: Derivative) -> Derivative:
    """A Function's `backward` or `jvp` that hands batches of torch's older vmap over to that of `torch.func`.

    `torch.autograd.grad(is_grads_batched=True)` and `torch.autograd.functional.jacobian(vectorize=True)` run the older
    one, which knows torch's own operators alone.
    """

    @functools.wraps(derivative)
    def handed_over(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        for tensor in incoming:
            if tensor is not None and older_vmap_batched(tensor):
                return _under_torch_func(derivative, ctx, incoming, _older_level(tensor))
        return derivative(ctx, *incoming)

    return handed_over


def _older_level(tensor: Tensor) -> int:
    """The level that a batched tensor lives on; the engine's threads do not know the one that runs."""
    for level in range(1, 64):
        if not older_vmap_batched(older_vmap_leave(tensor, level, 1, 0)):
            return level
    raise RuntimeError("is_grads_batched=True cannot be nested around a recurrent layer: use torch.func.vmap")


def _under_torch_func(
    derivative: Derivative, ctx: Any, incoming: Sequence[Tensor | None], level: int
) -> tuple[Tensor | None, ...]:
    batched = {place: t for place, t in enumerate(incoming) if t is not None and older_vmap_batched(t)}
    there: list[bool] = []

    def of_one(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = list(incoming)
        for place, value in zip(batched, values, strict=True):
            arguments[place] = value
        results = derivative(ctx, *arguments)
        there[:] = [result is not None for result in results]
        return tuple(result for result in results if result is not None)

    results = iter(torch.func.vmap(of_one)(*(older_vmap_leave(t, level, 1, 0) for t in batched.values())))
    return tuple(older_vmap_enter(next(results), 0, level) if known else None for known in there)
