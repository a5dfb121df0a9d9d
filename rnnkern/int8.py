"""int8 weights: how they are rounded and packed, and the operator that computes with them.

Every row of a weight has a float scale, its largest magnitude / 127, and so has, at each call, every row of what is
multiplied: the input, the state (after a reset gate, before a projection). Sums are exact integers; gates, cells and
states stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnkern import _C, autograd  # noqa: F401  _C registers the operator
from rnnkern.checks import check_device
from rnnkern.reference import GATES
from rnnkern.torch_private import dual_level

UNITS, DEPTH = 16, 4  # of a block of the packed weight, whatever the instruction set
MOST_COLUMNS = 1 << 16  # sums of products stay in 32 bits


class PackedWeight(NamedTuple):
    """`weight[(gate, unit), k]` is about `scale * data` in int8."""

    data: Tensor  # int8 [heads, blocks of 16 units, blocks of 4 columns, gates, 16, 4], zero beyond the weight
    scale: Tensor  # float32 [heads, blocks of 16 units, gates, 16]
    sum: Tensor  # int32, the same shape: each row's sum over its columns


def pack(weight: Tensor, gates: int, heads: int = 1) -> PackedWeight:
    """Rounds and packs a float32 weight `[gates * units, columns]`; units of a head lie side by side."""
    rows = weight.detach().unflatten(0, (gates, heads, -1))
    units, columns = rows.shape[2:]
    largest = rows.abs().amax(-1)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    data, scale = (rows * inverse.unsqueeze(-1)).round().to(torch.int8), largest / 127
    data = torch.nn.functional.pad(data, (0, -columns % DEPTH, 0, -units % UNITS))
    blocks = data.unflatten(3, (-1, DEPTH)).unflatten(2, (-1, UNITS))  # [gates, heads, blocks, 16, quads, 4]
    scale = torch.nn.functional.pad(scale, (0, -units % UNITS)).unflatten(2, (-1, UNITS))
    sums = blocks.sum((4, 5), dtype=torch.int32)
    return PackedWeight(
        blocks.permute(1, 2, 4, 0, 3, 5).contiguous(),
        scale.permute(1, 2, 0, 3).contiguous(),
        sums.permute(1, 2, 0, 3).contiguous(),
    )


def pack_direction(weights: Sequence[Tensor], cell: str, heads: int) -> dict[str, PackedWeight]:
    """The weights of one direction of a layer, in the operator's order, by the names that torch gives them."""
    w_ih, w_hh = weights[:2]
    gates = GATES[cell]
    packed = {"ih": pack(w_ih, gates)}
    if cell == "gru_v1":  # the product of its last gate comes after the others'
        split = 2 * w_hh.shape[0] // 3
        packed |= {"hh": pack(w_hh[:split], 2, heads), "hn": pack(w_hh[split:], 1, heads)}
    else:
        packed["hh"] = pack(w_hh, gates, heads)
    if len(weights) % 2:
        packed["hr"] = pack(weights[-1], 1)
    return packed


@dataclass(frozen=True)
class Weights:
    """All layers' weights as `functional.run` takes them in place of float ones."""

    packed: list[Tensor]  # layer by layer, of all directions
    biases: list[Tensor]
    num_layers: int
    input_size: int
    hidden_size: int
    proj_size: int

    @property
    def state_size(self) -> int:  # R
        return self.proj_size or self.hidden_size

    def of_layer(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """The packed weights, and the biases."""
        packed, biases = (
            every[index * len(every) // self.num_layers : (index + 1) * len(every) // self.num_layers]
            for every in (self.packed, self.biases)
        )
        return packed, biases

    def check(self, x: Tensor) -> None:
        if x.device.type not in ("cpu", "meta"):
            raise RuntimeError(f"a layer with int8 weights is for the CPU, got an input on {x.device}")
        if x.dtype != torch.float32:
            raise TypeError(f"a layer with int8 weights computes in float32, got an input of {x.dtype}")
        for tensor in (*self.packed, *self.biases):
            check_device(x, tensor, "parameter")
        for tensor in (*self.packed[1::3], *self.biases):
            if tensor.dtype != torch.float32:
                raise TypeError(f"a layer with int8 weights computes in float32, got scales of {tensor.dtype}")


def layer(
    packed: tuple[list[Tensor], list[Tensor]],
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    batch_sizes: Tensor | None,
    zoneout: float,
    *,
    cell: str,
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    heads: int,
    want_cells: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`reference.layer` with int8 weights: `(y, h_n, c_n, cells)`; RuntimeError where a gradient is wanted."""
    for tensor in (x, h_0, c_0):
        if tensor is not None and _needs_gradient(tensor):
            raise RuntimeError(
                "a layer with int8 weights is for inference and has no gradient: call it under torch.no_grad(), "
                "or train the float layer"
            )
    y, h_n, c_n, cells = torch.ops.rnnkern.int8_forward(
        x, *packed, h_0, c_0, lengths, reset_mask, batch_sizes, zoneout, cell, hidden_size, proj_size, bidirectional,
        heads, want_cells,
    )  # fmt: skip
    lstm = cell == "lstm"
    return y, h_n, c_n if lstm else None, cells if lstm and want_cells else None


def _needs_gradient(tensor: Tensor) -> bool:
    if autograd.recording() and tensor.requires_grad:
        return True
    return dual_level() and forward_ad.unpack_dual(tensor).tangent is not None


@torch.library.register_fake("rnnkern::int8_forward")
def _int8_forward_fake(
    x, weights, biases, h_0, c_0, lengths, reset_mask, batch_sizes, zoneout, cell, hidden_size, proj_size,
    bidirectional, heads, want_cells,
):  # fmt: skip
    directions, width = 2 if bidirectional else 1, proj_size or hidden_size
    batch = x.shape[1] if h_0 is None else h_0.shape[1]
    rows = x.shape[:-1]
    lstm = cell == "lstm"
    return (
        x.new_empty([*rows, directions * width]),
        x.new_empty([directions, batch, width]),
        x.new_empty([directions, batch, hidden_size] if lstm else [0]),
        x.new_empty([directions, *rows, hidden_size] if lstm and want_cells else [0]),
    )
