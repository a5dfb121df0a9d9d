"""The definition: recurrent cells and one layer in plain torch, a loop over time.

Every kernel is tested against this file, and derivatives that no kernel computes (the second ones, and
forward mode) are taken by differentiating it. It is written to be read, not to be fast.

Shapes: ``T`` steps, ``B`` batch, ``I`` input size, ``H`` hidden size, ``R`` width of the recurrent state
(the projection size, or ``H``), ``D`` directions, ``G`` gates, ``N`` members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# ‖out − ref‖ / ‖ref‖ that a forward result may have against the double reference; gradients: four times that.
TOLERANCE = {
    "float64": 1e-12,
    "float32": 5e-6,
    "tf32": 1e-3,
    "float16": 1e-3,
    "bfloat16": 8e-3,
}
GRADIENT_FACTOR = 4

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "rnn_sigmoid": 1, "lstm": 4, "gru": 3, "gru_v1": 3}


def recurrent_product(h: Tensor, w_hh: Tensor, heads: int) -> Tensor:
    """``h [B, R]`` times the recurrent weight ``[G*H, R / heads]``; a head's rows see its slice of ``h``."""
    if heads == 1:
        return h @ w_hh.t()
    size = w_hh.shape[1]
    blocks = w_hh.reshape(-1, heads, size, size)  # gate, head, unit, input
    return torch.einsum("ghik,bhk->bghi", blocks, h.reshape(-1, heads, size)).flatten(1)


def rnn_cell(cell: str, gates_x: Tensor, h: Tensor, operand: Tensor, w_hh: Tensor, b_hh: Tensor, heads: int) -> Tensor:
    """Elman 1990: ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``."""
    activation = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu, "rnn_sigmoid": torch.sigmoid}[cell]
    return activation(gates_x + recurrent_product(operand, w_hh, heads) + b_hh)


def lstm_cell(
    gates_x: Tensor, c: Tensor, operand: Tensor, w_hh: Tensor, b_hh: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000): ``(o * tanh(c'), c')``."""
    i, f, g, o = (gates_x + recurrent_product(operand, w_hh, heads) + b_hh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(
    gates_x: Tensor, h: Tensor, operand: Tensor, w_hh: Tensor, b_hh: Tensor, heads: int, reset_after: bool
) -> Tensor:
    """Cho et al. 2014. ``reset_after``, as in cuDNN and torch: ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))``."""
    x_r, x_z, x_n = gates_x.chunk(3, 1)
    split = 2 * w_hh.shape[0] // 3
    h_rz = recurrent_product(operand, w_hh[:split], heads) + b_hh[:split]
    r, z = torch.sigmoid(torch.cat([x_r, x_z], 1) + h_rz).chunk(2, 1)
    if reset_after:
        n = torch.tanh(x_n + r * (recurrent_product(operand, w_hh[split:], heads) + b_hh[split:]))
    else:
        n = torch.tanh(x_n + recurrent_product(r * operand, w_hh[split:], heads) + b_hh[split:])
    return (1 - z) * n + z * h


def layer(
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None,
    c_0: Tensor | None = None,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
    zoneout: float = 0.0,
    *,
    cell: str,
    bidirectional: bool = False,
    heads: int = 1,
    ensemble: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer, all its directions: ``(y, h_n, c_n, cells)``; the last two are None unless the cell is an LSTM.

    Args:
        x: ``[T, B, I]``, or ``[rows, I]`` with ``batch_sizes``.
        weights: per direction ``w_ih [G*H, I]``, ``w_hh [G*H, R / heads]``, then ``b_ih``, ``b_hh`` ``[G*H]`` if
            there are biases, then ``w_hr [P, H]`` if there is a projection.
        h_0, c_0: ``[D, B, R]`` and ``[D, B, H]``; None for zeros, not with ``batch_sizes``.
        lengths: ``[B]`` integers; row ``b`` is live at ``t`` while ``t < lengths[b]``.
        reset_mask: bool ``[T, B]`` (packed ``[rows]``): a new segment starts at ``t``.
        batch_sizes: ``[T]`` on the CPU, as in a ``PackedSequence``.
        recurrent_mask: ``[D, B, R]``, multiplies ``h`` before the recurrent product.
        zoneout_h, zoneout_c: bool ``[D, T, B, R]`` and ``[D, T, B, H]`` (packed ``[D, rows, …]``): true keeps
            the old value.
        zoneout: without masks, the share of the old value that is kept (evaluation).
        ensemble: every tensor but ``batch_sizes`` has a leading dimension ``N``, and so have the results.

    Returns:
        ``y [T, B, D*R]`` (packed ``[rows, D*R]``), ``h_n [D, B, R]``, ``c_n [D, B, H]`` and ``cells [D, T, B, H]``
        (packed ``[D, rows, H]``). Rows past a length are zero in ``y`` and ``cells``.
    """
    if ensemble:
        return _ensemble(
            x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout,
            cell=cell, bidirectional=bidirectional, heads=heads,
        )  # fmt: skip
    if batch_sizes is not None:
        return _packed(
            x, weights, h_0, c_0, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout,
            cell=cell, bidirectional=bidirectional, heads=heads,
        )  # fmt: skip

    steps, batch = x.shape[:2]
    live = torch.ones(steps, batch, 1, dtype=torch.bool, device=x.device)
    if lengths is not None:
        live = (torch.arange(steps, device=x.device)[:, None] < lengths.to(x.device)).unsqueeze(2)
        x = torch.where(live, x, torch.zeros_like(x))  # NaN in the padding stays there
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // directions
    if h_0 is None:
        assert c_0 is None
        hidden = weights[0].shape[0] // GATES[cell]
        projection = per_direction % 2 == 1
        h_0 = x.new_zeros(directions, batch, weights[per_direction - 1].shape[0] if projection else hidden)
        c_0 = x.new_zeros(directions, batch, hidden) if cell == "lstm" else None
    results = []
    for d in range(directions):
        restart = torch.zeros_like(live)
        if reset_mask is not None:
            if d == 0:
                restart = reset_mask.unsqueeze(2)
            elif steps > 0:  # in reverse, the state is cut on its way from t + 1 to t, unless t + 1 is padding
                last = torch.zeros_like(live[:1])
                restart = torch.cat([reset_mask[1:].unsqueeze(2) & live[1:], last])
        results.append(
            _direction(
                x, weights[d * per_direction : (d + 1) * per_direction], h_0[d], None if c_0 is None else c_0[d],
                live, restart, None if recurrent_mask is None else recurrent_mask[d],
                None if zoneout_h is None else zoneout_h[d], None if zoneout_c is None else zoneout_c[d], zoneout,
                cell, heads, reverse=d == 1,
            )
        )  # fmt: skip
    y = torch.cat([r[0] for r in results], 2)
    h_n = torch.stack([r[1] for r in results])
    if cell != "lstm":
        return y, h_n, None, None
    return y, h_n, torch.stack([r[2] for r in results]), torch.stack([r[3] for r in results])


def _direction(x, weights, h, c, live, restart, mask, zone_h, zone_c, zoneout, cell, heads, reverse):
    steps, batch = x.shape[:2]
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if len(weights) > 3 else (x.new_zeros(w_ih.shape[0]),) * 2
    w_hr = weights[-1] if len(weights) % 2 else None
    gates_x = x @ w_ih.t() + b_ih
    ys, cells = [], []
    for t in reversed(range(steps)) if reverse else range(steps):
        h_old = torch.where(restart[t], torch.zeros_like(h), h)
        operand = h_old if mask is None else h_old * mask
        if cell == "lstm":
            c_old = torch.where(restart[t], torch.zeros_like(c), c)
            h_new, c_new = lstm_cell(gates_x[t], c_old, operand, w_hh, b_hh, heads)
            if w_hr is not None:
                h_new = h_new @ w_hr.t()
            c_new = _zoned(c_new, c_old, None if zone_c is None else zone_c[t], zoneout)
            c = torch.where(live[t], c_new, c)
            cells.append(torch.where(live[t], c_new, torch.zeros_like(c_new)))
        elif cell.startswith("gru"):
            h_new = gru_cell(gates_x[t], h_old, operand, w_hh, b_hh, heads, reset_after=cell == "gru")
        else:
            h_new = rnn_cell(cell, gates_x[t], h_old, operand, w_hh, b_hh, heads)
        h_new = _zoned(h_new, h_old, None if zone_h is None else zone_h[t], zoneout)
        h = torch.where(live[t], h_new, h)
        ys.append(torch.where(live[t], h_new, torch.zeros_like(h_new)))
    order = slice(None, None, -1 if reverse else 1)
    y = torch.stack(ys[order]) if ys else x.new_zeros(0, batch, h.shape[1])
    if cell != "lstm":
        return y, h, None, None
    return y, h, c, torch.stack(cells[order]) if cells else x.new_zeros(0, batch, c.shape[1])


def _zoned(new: Tensor, old: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """Krueger et al. 2016: keep the old value where the mask says so; in evaluation, blend."""
    if mask is not None:
        return torch.where(mask, old, new)
    return new if share == 0 else share * old + (1 - share) * new


def _packed(x, weights, h_0, c_0, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout, **options):
    """Pads, runs and packs again."""
    batch = h_0.shape[1]
    sizes = batch_sizes.to(x.device)
    live = torch.arange(batch, device=x.device) < sizes[:, None]  # [T, B], row-major = packed order
    place = torch.where(live, torch.cumsum(live.flatten(), 0).view_as(live) - 1, 0)

    def pad(rows: Tensor, dim: int = 0) -> Tensor:
        return rows.index_select(dim, place.flatten()).unflatten(dim, live.shape)

    y, h_n, c_n, cells = layer(
        pad(x), weights, h_0, c_0, live.sum(0), None if reset_mask is None else pad(reset_mask), None, recurrent_mask,
        None if zoneout_h is None else pad(zoneout_h, 1), None if zoneout_c is None else pad(zoneout_c, 1), zoneout,
        **options,
    )  # fmt: skip
    return y[live], h_n, c_n, None if cells is None else cells[:, live]


def _ensemble(
    x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout, **options
):  # fmt: skip
    def member(tensor: Tensor | None, n: int) -> Tensor | None:
        return None if tensor is None else tensor[n]

    results = [
        layer(
            x[n], [w[n] for w in weights], member(h_0, n), member(c_0, n), member(lengths, n), member(reset_mask, n),
            batch_sizes, member(recurrent_mask, n), member(zoneout_h, n), member(zoneout_c, n), zoneout, **options,
        )
        for n in range(x.shape[0])
    ]  # fmt: skip
    return tuple(None if r[0] is None else torch.stack(r) for r in zip(*results, strict=True))
