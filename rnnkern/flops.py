"""What the operators multiply and add, for `torch.utils.flop_counter.FlopCounterMode`: as torch counts its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.utils.flop_counter import register_flop_formula

from rnnkern import ops

Shape = Sequence[int]


def _of_all_rows(x: Shape, weights: Sequence[Shape], ensemble: bool) -> list[int]:
    """Of the product with each weight; a bias has none."""
    rows = math.prod(x[:-1])
    return [2 * rows * math.prod(weight[-2:]) if len(weight) == 2 + ensemble else 0 for weight in weights]


@register_flop_formula(ops.layer_forward.overloadpacket)
def _layer_forward(
    x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c,
    zoneout, cell, bidirectional, heads, ensemble, *_, **__,
):  # fmt: skip
    return sum(_of_all_rows(x, weights, ensemble))


@register_flop_formula(ops.layer_backward.overloadpacket)
def _layer_backward(
    d_y, d_h_n, d_c_n, d_cells, x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h,
    zoneout_c, zoneout, cell, bidirectional, heads, ensemble, recompute, y, cells, gates, needs, **_,
):  # fmt: skip
    products = _of_all_rows(x, weights, ensemble)
    a_direction = len(weights) // (2 if bidirectional else 1)
    rows = math.prod(x[ensemble:-1])
    unasked = 0 if needs[1] else x[-2] if batch_sizes is None else h_0[-2]  # rows of the first step's state
    total = 0
    for place, product in enumerate(products):
        which = place % a_direction
        if which == 0:
            total += product if needs[0] else 0
        elif which == 1:
            total += product * (rows - unasked) // max(rows, 1)
        else:  # a projection's, of every step's state
            total += product
        total += product if needs[3 + place] else 0
    return total
