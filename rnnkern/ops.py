"""The two operators of `rnnkern._C`, what their results look like without running them, and how to call them.

The operators take every tensor of a layer by position. Here and in `autograd.py` those travel as one flat tuple,
`tensors = (x, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, *weights)`, and what is
not a tensor as `Options`. `reference.layer` says what each of them means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rnnkern import _C  # registers the operators
from rnnkern.reference import GATES
from rnnkern.torch_private import below_autograd

layer_forward = torch.ops.rnnkern.layer_forward.default
layer_backward = torch.ops.rnnkern.layer_backward.default

Tensors: TypeAlias = Sequence[Any]  # each a Tensor or, where it is optional, None
WEIGHTS = 9  # where the weights begin in `tensors`
SAVED = {"rnn_tanh": 1, "rnn_relu": 1, "rnn_sigmoid": 1, "lstm": 4, "gru": 4, "gru_v1": 3}  # K of gates [D, T, B, K*H]


class Options(NamedTuple):
    """What a call is, apart from its tensors, in the operator's order."""

    zoneout: float
    cell: str
    bidirectional: bool
    heads: int
    ensemble: bool
    save: bool
    recompute: bool
    want_cells: bool


def forward(options: Options, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`(y, h_n, c_n, cells, gates)`; what there is not is empty."""
    return layer_forward(tensors[0], tensors[WEIGHTS:], *tensors[1:WEIGHTS], *options)


def forward_below_autograd(options: Options, tensors: Tensors) -> tuple[Tensor, ...]:
    """`forward` where nothing differentiates it, past the dispatcher if nobody would notice."""
    results = None if torch.compiler.is_compiling() else _C.layer_forward(options, tensors)
    if results is not None:
        return results
    with below_autograd():
        return forward(options, tensors)


def backward(options: Options, needs: Sequence[bool], tensors: Tensors, per_sample: bool = False) -> tuple[Tensor, ...]:
    """Gradients of `(x, h_0, c_0, *weights)`, empty where `needs` is false.

    Args:
        tensors: gradients of `(y, h_n, c_n, cells)`, None where zero; `(y, cells, gates)` of the forward call, None
            where nothing reads them; the forward call's own.
        per_sample: the gradients of the weights are those of each sample of the batch, `[B, ...]`.
    """
    d_outputs, kept, tensors = tensors[:4], tensors[4:7], tensors[7:]
    x = tensors[0]
    d_x, d_h_0, d_c_0, d_weights = layer_backward(
        *d_outputs, x, tensors[WEIGHTS:], *tensors[1:WEIGHTS], *options[:5], options.recompute,
        *(x.new_empty(0) if tensor is None else tensor for tensor in kept), needs,
        per_sample=per_sample,
    )  # fmt: skip
    return d_x, d_h_0, d_c_0, *d_weights


def backward_below_autograd(
    options: Options, needs: Sequence[bool], tensors: Tensors, per_sample: bool = False
) -> tuple[Tensor, ...]:
    """`backward` likewise."""
    gradients = None if torch.compiler.is_compiling() else _C.layer_backward(options, needs, tensors, per_sample)
    if gradients is not None:
        return gradients
    with below_autograd():
        return backward(options, needs, tensors, per_sample)


def steps(options: Options, tensors: Tensors) -> int:
    x, batch_sizes = tensors[0], tensors[5]
    return batch_sizes.shape[0] if batch_sizes is not None else x.shape[1 if options.ensemble else 0]


def present(options: Options) -> tuple[bool, bool, bool, bool, bool]:
    """Which results of the forward operator are more than an empty tensor."""
    lstm = options.cell == "lstm"
    return True, True, lstm, lstm and (options.save or options.want_cells), options.save and not options.recompute


@torch.library.register_fake("rnnkern::layer_forward")
def _layer_forward_fake(
    x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c,
    zoneout, cell, bidirectional, heads, ensemble, save, recompute, want_cells,
):  # fmt: skip
    options = Options(zoneout, cell, bidirectional, heads, ensemble, save, recompute, want_cells)
    directions = 2 if bidirectional else 1
    members = x.shape[:1] if ensemble else ()
    hidden = weights[0].shape[-2] // GATES[cell]
    a_direction = len(weights) // directions
    width = weights[a_direction - 1].shape[-2] if a_direction % 2 else hidden
    batch = x.shape[-2] if h_0 is None else h_0.shape[-2]
    # Rows as x has them: [T, B], or [rows] when packed. B is the state's.
    rows = [x.shape[-2]] if batch_sizes is not None else [x.shape[-3], batch]
    shapes = (
        [*members, *rows, directions * width],
        [*members, directions, batch, width],
        [*members, directions, batch, hidden],
        [*members, directions, *rows, hidden],
        [*members, directions, *rows, SAVED[cell] * hidden],
    )
    return tuple(x.new_empty(shape if there else [0]) for shape, there in zip(shapes, present(options), strict=True))


@torch.library.register_fake("rnnkern::layer_backward")
def _layer_backward_fake(
    d_y, d_h_n, d_c_n, d_cells, x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h,
    zoneout_c, zoneout, cell, bidirectional, heads, ensemble, recompute, y, cells, gates, needs, *, per_sample=False,
):  # fmt: skip
    each = (x.shape[1],) if per_sample else ()
    shapes = [*(None if t is None else t.shape for t in (x, h_0, c_0)), *((*each, *w.shape) for w in weights)]
    d_x, d_h_0, d_c_0, *d_weights = (
        x.new_empty(shape if need else [0]) for shape, need in zip(shapes, needs, strict=True)
    )
    return d_x, d_h_0, d_c_0, d_weights
