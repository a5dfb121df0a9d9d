"""No side is timed before its results agree with the definition, ``rnnkern/reference.py``, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkern import reference
from suites import Data, Problem

PEER_FACTOR = 4  # peers must compute the same thing, but are not held to our own tolerances
FLOPS = {"cpu": 2e10, "cuda": 2e12}  # of the reference, about a second's worth; longer problems are checked shortened


def expected(data: Data, i: int = 0) -> list[Tensor]:
    """Of input ``i``: ``[y, h_n, (c_n)]``; for training ``[y, d_x, *d_weights]``. Packed: rows in packed order."""
    problem = data.problem
    if problem.by_transforms:
        return expected_by_loop(data, i)
    leaf, called = data.leaves()[i]
    x = leaf.detach().double()
    weights = [w.detach().double() for w in data.weights]
    training = problem.mode == "training"
    for tensor in (x, *weights):
        tensor.requires_grad_(training)
    directions = 2 if problem.bidirectional else 1
    per_layer = len(weights) // problem.layers
    width = problem.projection or problem.hidden
    finals: list[list[Tensor]] = [[], []]
    y = x
    for k in range(problem.layers):
        rows = slice(k * directions, (k + 1) * directions)
        if data.state:
            h_0 = data.state[0][rows].double()
            c_0 = data.state[1][rows].double() if len(data.state) > 1 else None
        else:
            h_0 = x.new_zeros(directions, problem.batch, width)
            c_0 = x.new_zeros(directions, problem.batch, problem.hidden) if problem.cell == "lstm" else None
        y, h_n, c_n, _ = reference.layer(
            y,
            weights[k * per_layer : (k + 1) * per_layer],
            h_0,
            c_0,
            reset_mask=data.reset_mask,
            batch_sizes=called.batch_sizes if problem.packed else None,
            cell="rnn_tanh" if problem.cell == "rnn" else problem.cell,
            bidirectional=problem.bidirectional,
        )
        for kept, final in zip(finals, (h_n, c_n), strict=True):
            if final is not None:
                kept.append(final)
    if training:
        return [y.detach(), *torch.autograd.grad(y, [x, *weights], data.d_y.double())]
    return [y, *(torch.cat(kept) for kept in finals if kept)]


def expected_by_loop(data: Data, i: int) -> list[Tensor]:
    """What ``adapters.transforms`` lists."""
    from adapters.transforms import Loop

    problem = data.problem
    double = copy.copy(data)
    double.inputs, double.d_y = [data.inputs[i].detach().double()], data.d_y.double()
    weights = [[w.detach().double().requires_grad_() for w in layer.parameters()] for layer in data.layers]
    cell = "rnn_tanh" if problem.cell == "rnn" else problem.cell

    def output(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        zeros = x.new_zeros(1, x.shape[1], problem.hidden)
        return reference.layer(x, weights, zeros, zeros if cell == "lstm" else None, cell=cell)[0]

    loop = Loop([output] * problem.members, weights, double)
    return [result.detach() for result in loop.results(loop(0))]


def tolerances(problem: Problem, is_peer: bool) -> tuple[float, float]:
    """For results and for gradients."""
    dtype = problem.dtype
    on_gpu = torch.device(problem.device).type == "cuda"
    if dtype == "float32" and on_gpu and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        dtype = "tf32"
    result = reference.TOLERANCE[dtype] * (PEER_FACTOR if is_peer else 1)
    return result, result * reference.GRADIENT_FACTOR


def compare(
    problem: Problem, got: list[Tensor | None], want: list[Tensor], is_peer: bool, tolerance: float | None = None
) -> tuple[float, str]:
    """The largest ‖got − want‖ / ‖want‖, and what is wrong (nothing: an empty string).

    ``None`` stands for a final state that a side does not give. ``tolerance`` is that of a side whose arithmetic is
    coarser than the problem's dtype (8-bit integers).
    """
    if len(got) != len(want):
        return float("inf"), f"{len(got)} results where {len(want)} were expected"
    if problem.mode == "per-sample":
        names = [f"gradient of weight {k}" for k in range(len(want))]
    elif problem.mode == "training":
        names = ["y", "d_x", *(f"gradient of weight {k}" for k in range(len(want) - 2))]
    else:
        names = ["y", "h_n", "c_n"]
    result, gradient = (tolerance, tolerance) if tolerance else tolerances(problem, is_peer)
    largest, complaints = 0.0, []
    for name, g, w in zip(names, got, want, strict=False):
        if g is None and name in ("h_n", "c_n"):
            continue
        if g is None:
            return float("inf"), f"{name} is missing"
        if g.numel() != w.numel():
            return float("inf"), f"{name} has the shape {list(g.shape)}, expected {list(w.shape)}"
        error = ((g.detach().double().reshape(w.shape) - w).norm() / w.norm().clamp_min(1e-30)).item()
        largest = max(largest, error) if error == error else float("nan")
        allowed = gradient if problem.differentiates and name != "y" else result
        if not error <= allowed:  # NaN fails too
            complaints.append(f"{name} is off by {error:.1e}, allowed {allowed:.1e}")
    return largest, "; ".join(complaints)
