"""Recurrent layers as functions of their weights: checks, packing, the stack of layers, and every random mask.

Shapes: `T` steps, `B` batch, `I` input size, `H` hidden size, `P` projection size, `R = P or H`, `L` layers, `D`
directions. Values of tensors (lengths, batch sizes) are checked by the operator, which works when compiled too; those
of lengths on a GPU only where the environment has `RNNKERN_CHECK=1`, since that waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkern import autocast, autograd, checks, int8
from rnnkern.direct import infer
from rnnkern.reference import GATES

State = Any  # a tensor, or the pair (h, c) of an LSTM
Weights = Sequence[Tensor] | int8.Weights


class Settings(NamedTuple):
    """What a stack of layers is, apart from its tensors."""

    cell: str  # its name in `rnnkern.reference`
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    training: bool = False
    heads: int = 1
    recompute: bool = False

    @property
    def lstm(self) -> bool:
        return self.cell == "lstm"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def lstm(
    input: Tensor | PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    training: bool = False,
    heads: int = 1,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset_mask: Tensor | PackedSequence | None = None,
    return_state_sequence: bool = False,
) -> tuple[Any, ...]:
    """`rnnkern.LSTM.forward` with its weights as an argument: `(output, (h_n, c_n))`, and the cell states if asked for.

    Args:
        weights: flat, in torch's order; per layer and direction `w_ih [4*H, I]`, `w_hh [4*H, R / heads]`, then `b_ih`,
            `b_hh` `[4*H]` if there are biases, then `w_hr [P, H]` if there is a projection.
    """
    settings = Settings(
        "lstm", num_layers, bidirectional, batch_first, dropout, recurrent_dropout, zoneout, training, heads, recompute
    )
    return _checked(settings, input, hx, weights, lengths, reset_mask, return_state_sequence)


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    training: bool = False,
    heads: int = 1,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset_mask: Tensor | PackedSequence | None = None,
    return_state_sequence: bool = False,
    reset_after: bool = True,
) -> tuple[Any, ...]:
    """`rnnkern.GRU.forward` with its weights as an argument, as in `lstm`: `(output, h_n)`."""
    cell = "gru" if reset_after else "gru_v1"
    settings = Settings(
        cell, num_layers, bidirectional, batch_first, dropout, recurrent_dropout, zoneout, training, heads, recompute
    )
    return _checked(settings, input, hx, weights, lengths, reset_mask, return_state_sequence)


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    training: bool = False,
    heads: int = 1,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset_mask: Tensor | PackedSequence | None = None,
    return_state_sequence: bool = False,
    nonlinearity: str = "tanh",
) -> tuple[Any, ...]:
    """`rnnkern.RNN.forward` with its weights as an argument, as in `lstm`: `(output, h_n)`."""
    cell = checks.rnn_cell_name(nonlinearity)
    settings = Settings(
        cell, num_layers, bidirectional, batch_first, dropout, recurrent_dropout, zoneout, training, heads, recompute
    )
    return _checked(settings, input, hx, weights, lengths, reset_mask, return_state_sequence)


def _checked(settings: Settings, input: Any, hx: State, weights: Iterable[Tensor], *rest: Any) -> tuple[Any, ...]:
    """`run` with weights that come from no module."""
    weights = list(weights)
    checks.check_function_arguments(
        settings.cell, weights, settings.num_layers, settings.bidirectional, settings.heads, settings.dropout,
        settings.recurrent_dropout, settings.zoneout,
    )  # fmt: skip
    return run(settings, input, hx, weights, *rest)


def run(
    settings: Settings,
    input: Tensor | PackedSequence,
    hx: State,
    weights: Weights,
    lengths: Tensor | None,
    reset_mask: Tensor | PackedSequence | None,
    return_state_sequence: bool,
) -> tuple[Any, ...]:
    """What `lstm`, `gru`, `rnn` and the modules share; sizes of the weights are already checked, or a module's own."""
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths cannot be given with a PackedSequence, which has its own")
        return _run_packed(settings, input, hx, weights, reset_mask, return_state_sequence)
    cell, num_layers, bidirectional, batch_first, dropout, recurrent_dropout, zoneout, training, heads, _ = settings
    dim = input.dim()
    if (
        dim == 3
        and lengths is None
        and reset_mask is None
        and not return_state_sequence
        and not (training and (dropout or recurrent_dropout or zoneout))
    ):
        result = infer(cell, input, hx, weights, num_layers, bidirectional, batch_first, heads, zoneout)
        if result is not None:
            return result
    name = checks.cell_name(cell)
    if input.is_nested:
        raise TypeError("input must be a dense tensor, got a nested one: input.to_padded_tensor(0.0), and lengths=")
    if dim != 3 and dim != 2:
        raise ValueError(
            f"{name}: Expected input to be 2D or 3D, got {dim}D {'tensor ' if name == 'RNN' else ''}instead"
        )
    batched = dim == 3
    h_0, c_0 = checks.initial_states(hx, cell)
    if h_0 is not None and c_0 is not None:
        if h_0.dim() != dim or c_0.dim() != dim:
            raise RuntimeError(
                f"For {'batched 3-D' if batched else 'unbatched 2-D'} input, hx and cx should also be {dim}-D "
                f"but got ({h_0.dim()}-D, {c_0.dim()}-D) tensors"
            )
        if not batched:
            h_0, c_0 = h_0.unsqueeze(1), c_0.unsqueeze(1)
    elif h_0 is not None:
        if h_0.dim() != dim:
            raise RuntimeError(
                f"For {'batched 3-D' if batched else 'unbatched 2-D'} input, hx should also be {dim}-D "
                f"but got {h_0.dim()}-D tensor"
            )
        if not batched:
            h_0 = h_0.unsqueeze(1)
    if not batched:
        x = input.unsqueeze(1)
    elif batch_first:
        x = input.transpose(0, 1)
    else:
        x = input
    if lengths is not None:
        lengths = checks.checked_lengths(lengths, x, batched)
    if reset_mask is not None:
        reset_mask = checks.checked_reset_mask(reset_mask, x, batched, batch_first)
    y, h_n, c_n, sequence = _stack(
        settings, x, h_0, c_0, weights, x.shape[1], return_state_sequence, lengths=lengths, reset_mask=reset_mask
    )
    if not batched:
        y, h_n = y.squeeze(1), h_n.squeeze(1)
        c_n = None if c_n is None else c_n.squeeze(1)
        sequence = None if sequence is None else sequence.squeeze(2)
    elif batch_first:
        y = y.transpose(0, 1)
        sequence = None if sequence is None else sequence.transpose(1, 2)
    state = h_n if c_n is None else (h_n, c_n)
    return (y, state, sequence) if return_state_sequence else (y, state)


def _run_packed(
    settings: Settings,
    input: PackedSequence,
    hx: State,
    weights: Weights,
    reset_mask: Tensor | PackedSequence | None,
    return_state_sequence: bool,
) -> tuple[Any, ...]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    h_0, c_0 = checks.initial_states(hx, settings.cell)
    if torch.jit.is_tracing():
        batch: Any = batch_sizes[0]  # so that the trace takes other batches
    elif not torch.compiler.is_compiling():
        batch = int(batch_sizes[0])
    elif sorted_indices is not None:  # no value of a tensor is known here
        batch = sorted_indices.shape[0]
    elif h_0 is not None:
        batch = h_0.shape[1]
    else:
        batch = batch_sizes[0].item()
    mask = None if reset_mask is None else checks.checked_packed_reset_mask(reset_mask, input)
    y, h_n, c_n, sequence = _stack(
        settings, data, h_0, c_0, weights, batch, return_state_sequence, reset_mask=mask, batch_sizes=batch_sizes,
        order=sorted_indices,
    )  # fmt: skip
    if unsorted_indices is not None:
        h_n = h_n.index_select(1, unsorted_indices)
        c_n = None if c_n is None else c_n.index_select(1, unsorted_indices)
    output = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
    hidden = h_n if c_n is None else (h_n, c_n)
    return (output, hidden, sequence) if return_state_sequence else (output, hidden)


def _stack(
    settings: Settings,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Weights,
    batch: int,
    return_state_sequence: bool,
    *,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """All layers, on `x [T, B, I]` or packed `[rows, I]`: `(y, h_n, c_n, state sequence)`.

    Args:
        order: sorts what belongs to a sample into the order of the packed rows.
    """
    lstm, directions, num_layers, zoneout = settings.lstm, settings.directions, settings.num_layers, settings.zoneout
    if not isinstance(weights, int8.Weights) and autocast.applies_to(x):
        x, h_0, c_0, weights = autocast.cast(x, h_0, c_0, weights)
    input_size, hidden, width = _checked_sizes(settings, x, weights)
    if x.shape[-1] != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {x.shape[-1]}")
    h: Tensor | None = None
    c: Tensor | None = None
    # The operator takes None for zeros, but not with packed rows, which do not say how many sequences they are of.
    if h_0 is None and batch_sizes is not None:
        h = x.new_zeros((directions, batch, width))
        c = None if not lstm else h if width == hidden else x.new_zeros((directions, batch, hidden))
    elif h_0 is not None:
        rows = num_layers * directions
        h_0 = checks.checked_state(x, h_0, (rows, batch, width), "hidden[0] size" if lstm else "hidden size", order)
        if lstm:
            assert c_0 is not None
            c_0 = checks.checked_state(x, c_0, (rows, batch, hidden), "hidden[1] size", order)
        h, c = h_0, c_0

    noise = settings.training and (settings.recurrent_dropout > 0 or zoneout > 0)
    recurrent_mask = zoneout_h = zoneout_c = None
    h_n, c_n = [], []
    sequences: list[Any] = []
    for layer in range(num_layers):
        if num_layers > 1 and h_0 is not None:
            h = h_0[layer * directions : (layer + 1) * directions]
            c = None if c_0 is None else c_0[layer * directions : (layer + 1) * directions]
        if noise:
            recurrent_mask, zoneout_h, zoneout_c = _draw(
                x, directions, batch, width, hidden if lstm else 0, settings.recurrent_dropout, zoneout, order
            )
        if isinstance(weights, int8.Weights):
            y, h_layer, c_layer, cells = int8.layer(
                weights.of_layer(layer), x, h, c, lengths, reset_mask, batch_sizes, zoneout,
                cell=settings.cell, hidden_size=hidden, proj_size=weights.proj_size,
                bidirectional=settings.bidirectional, heads=settings.heads, want_cells=lstm and return_state_sequence,
            )  # fmt: skip
        else:
            y, h_layer, c_layer, cells = autograd.layer(
                x, weights if num_layers == 1 else _of_layer(weights, layer, num_layers), h, c, lengths, reset_mask,
                batch_sizes, recurrent_mask, zoneout_h, zoneout_c, 0.0 if settings.training else zoneout,
                cell=settings.cell, bidirectional=settings.bidirectional, heads=settings.heads,
                recompute=settings.recompute, want_cells=lstm and return_state_sequence,
            )  # fmt: skip
        h_n.append(h_layer)
        if lstm:
            c_n.append(c_layer)
        if return_state_sequence:
            sequences.append(cells if lstm else y.unflatten(-1, (directions, width)).movedim(-2, 0))
        last = layer == num_layers - 1
        x = torch.dropout(y, settings.dropout, True) if settings.training and settings.dropout > 0 and not last else y
    # Of one layer too: its memory is not the output's.
    sequence = torch.cat(sequences) if return_state_sequence else None
    return y, _joined(h_n), _joined(c_n) if lstm else None, sequence


def _checked_sizes(settings: Settings, x: Tensor, weights: Weights) -> tuple[int, int, int]:
    """`I, H, R` of the weights, which fit `x` in dtype and device."""
    if isinstance(weights, int8.Weights):
        weights.check(x)
        return weights.input_size, weights.hidden_size, weights.state_size
    checks.check_weights(x, weights)
    a_layer = len(weights) // settings.num_layers
    hidden, input_size = weights[0].shape[0] // GATES[settings.cell], weights[0].shape[1]
    projection = a_layer // settings.directions % 2 == 1
    return input_size, hidden, weights[a_layer - 1].shape[0] if projection else hidden


def _of_layer(weights: Sequence[Tensor], layer: int, num_layers: int) -> Sequence[Tensor]:
    count = len(weights) // num_layers
    return weights[layer * count : (layer + 1) * count]


def _joined(layers: list[Any]) -> Tensor:
    return layers[0] if len(layers) == 1 else torch.cat(layers)


# --- random masks: every draw's shape follows from the shapes of the call alone, and its values from the seed ---------


def _uniform(shape: tuple[int, ...], x: Tensor) -> Tensor:
    """Numbers from 0 to 1 beside `x`, whatever the default dtype is."""
    return torch.rand(shape, dtype=torch.float32, device=x.device)


def _draw(
    x: Tensor,
    directions: int,
    batch: int,
    width: int,
    cell_width: int,
    recurrent_dropout: float,
    zoneout: float,
    order: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """One layer's masks in training: recurrent dropout's `[D, B, R]`, zoneout's `[D, T, B, R]` and `[D, T, B, H]`."""
    recurrent_mask = zoneout_h = zoneout_c = None
    if recurrent_dropout > 0:
        keep = _uniform((directions, batch, width), x) >= recurrent_dropout
        recurrent_mask = keep.to(x.dtype) * (1 / (1 - recurrent_dropout) if recurrent_dropout < 1 else 0.0)
        if order is not None:
            recurrent_mask = recurrent_mask.index_select(1, order)
    if zoneout > 0:
        shape = (directions, *x.shape[:-1])
        zoneout_h = _uniform((*shape, width), x) < zoneout
        if cell_width > 0:
            zoneout_c = _uniform((*shape, cell_width), x) < zoneout
    return recurrent_mask, zoneout_h, zoneout_c
