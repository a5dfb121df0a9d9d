"""Derivatives of a layer: what `torch.autograd` and `torch.func` ask of the two operators.

Each operator has a `torch.autograd.Function` as its `Autograd` kernel, so that everything that dispatches (a compiled
graph, an exported program) finds the gradient; its forward calls the operator again below autograd (where nobody would
notice, the operator's code, `ops.forward_below_autograd`), or, under a transform of `torch.func`, one level further
down (`levels.py`). First derivatives run kernels; the derivatives of those differentiate `reference.layer`
(`formula.py`). A cell that is called eagerly has a Function of its own (`CellStep`).

Note [T == 1]: the backward of one step reads neither `y` nor `cells`, so they are not saved there, and the caller may
change them in place, as with torch's cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

from rnnkern import _C, batching, formula, levels, ops
from rnnkern.ops import WEIGHTS, Options, Tensors
from rnnkern.torch_private import dual_level, forward_mode_enabled, transforms_active


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
    recompute: bool = False,
    want_cells: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`reference.layer`, by the kernels; `cells` is None unless it is wanted, and `c_n` unless the cell is an LSTM.

    Args:
        recompute: keep no gates for backward; rebuild them there.
        want_cells: give the cell states after every step (LSTM).
    """
    tensors = (x, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, *weights)
    compiling = torch.compiler.is_compiling()
    if not compiling and _of_subclass(tensors):
        # Outside of the Functions, where it would make their results views.
        return handle_torch_function(
            layer, tensors, x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h,
            zoneout_c, zoneout, cell=cell, bidirectional=bidirectional, heads=heads, recompute=recompute,
            want_cells=want_cells,
        )  # fmt: skip
    save = compiling and _needs_gradient(tensors)
    options = Options(zoneout, cell, bidirectional, heads, False, save, recompute, want_cells)
    traced = compiling or torch.jit.is_tracing()  # what traces must see the operator itself
    y, h_n, c_n, cells, _ = ops.forward(options, tensors) if traced else _forward(options, tensors)
    if cell != "lstm":
        return y, h_n, None, None
    return y, h_n, c_n, cells if want_cells else None


def _of_subclass(tensors: Tensors) -> bool:
    """Whether some are of a class whose `__torch_function__` makes the results its own."""
    if not has_torch_function(tensors):
        return False
    return any(type(t) not in (Tensor, Parameter) and has_torch_function_unary(t) for t in tensors if t is not None)


def recording() -> bool:
    """Whether autograd takes note of what is computed; in inference mode it does not, whatever the gradient mode."""
    return torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled())


def _needs_gradient(tensors: Tensors) -> bool:
    if recording():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _forward(options: Options, tensors: Tensors) -> tuple[Tensor, ...]:
    """The forward operator, and as much of autograd around it as there is to do."""
    differentiable = _needs_gradient(tensors)
    if differentiable and not options.save:
        options = options._replace(save=True)
    if transforms_active():
        if levels.functionalized():  # the dispatcher knows how
            return ops.forward(options, tensors)
        return levels.apply(LayerForward, _forward_of_batch, _forward, (options,), tensors)
    if differentiable or (dual_level() and forward_mode_enabled()):
        return LayerForward.apply(options, *tensors)
    return ops.forward_below_autograd(options, tensors)


def _backward(
    options: Options, needs: Sequence[bool], tensors: Tensors, per_sample: bool = False
) -> tuple[Tensor, ...]:
    """The backward operator likewise; `tensors` are `ops.backward`'s."""
    under_transforms = transforms_active()
    if under_transforms and levels.functionalized():
        return ops.backward(options, needs, tensors, per_sample)
    if not (under_transforms or _needs_gradient(tensors) or (dual_level() and forward_mode_enabled())):
        return ops.backward_below_autograd(options, needs, tensors, per_sample)
    if per_sample:
        members = batching.members_of_one(tensors, batching.BACKWARD)
        gradients = _backward(options._replace(ensemble=True), needs, members)
        return batching.batch_of_members(gradients, needs)
    if under_transforms:
        return levels.apply(LayerBackward, _backward_of_batch, _backward, (options, needs), tensors)
    return LayerBackward.apply(options, needs, *tensors)


class LayerForward(torch.autograd.Function):
    """`apply(options, *tensors)` -> `y, h_n, c_n, cells, gates`."""

    @staticmethod
    def forward(ctx: Any, options: Options, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if transforms_active():
            results = levels.below(_forward, (options,), tensors)
        else:
            results = ops.forward_below_autograd(options, tensors)
        _keep_for_backward(ctx, options, tensors, results)
        if dual_level():
            ctx.save_for_forward(*tensors)
        return results

    @staticmethod
    @batching.handing_over
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, y, cells, gates = ctx.saved_tensors
        need = ctx.needs_input_grad
        needs = (*need[1:4], *need[1 + WEIGHTS :])
        gradients = _backward(ctx.options, needs, (*d_results[:4], y, cells, gates, *tensors))
        return None, *_spread(needs, gradients)

    @staticmethod
    @batching.handing_over
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:

        def function_of(tensors: Tensors, places: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
            return lambda *values: formula.reference_results(ctx.options, formula.replaced(tensors, places, values))

        results = formula.jvp(function_of, ctx.saved_tensors, tangents)
        padded = (*results, *(None,) * (5 - len(results)))
        return tuple(r if there else None for r, there in zip(padded, ops.present(ctx.options), strict=True))


class LayerBackward(torch.autograd.Function):
    """`apply(options, needs, d_y, d_h_n, d_c_n, d_cells, y, cells, gates, *tensors)` -> `d_x, d_h_0, d_c_0, *...`.

    `y`, `cells` and `gates` are functions of the other tensors: derivatives are with respect to those alone.
    """

    @staticmethod
    def forward(ctx: Any, options: Options, needs: Sequence[bool], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if transforms_active():
            gradients = levels.below(_backward, (options, needs), tensors)
        else:
            gradients = ops.backward_below_autograd(options, needs, tensors)
        _keep_for_double_backward(ctx, options, needs, tensors, gradients)
        if dual_level():
            ctx.save_for_forward(*tensors[:4], *tensors[7:])
        return gradients

    @staticmethod
    @batching.handing_over
    def backward(ctx: Any, *d_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        need = ctx.needs_input_grad[2:6] + ctx.needs_input_grad[9:]
        places = [place for place, wanted in enumerate(need) if wanted]
        function = formula.reference_gradients(ctx, tensors, places)
        gradients, pullback = formula.vjp(function, [tensors[p] for p in places])
        incoming = [d for d, wanted in zip(d_gradients, ctx.needs, strict=True) if wanted]
        found = pullback(formula.dense(incoming, gradients))
        result = formula.replaced([None] * len(tensors), places, found)
        return None, None, *result[:4], None, None, None, *result[4:]

    @staticmethod
    @batching.handing_over
    def jvp(ctx: Any, _options: None, _needs: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tangents = tangents[:4] + tangents[7:]
        found = iter(formula.jvp(partial(formula.reference_gradients, ctx), ctx.saved_tensors, tangents))
        return tuple(next(found) if wanted else None for wanted in ctx.needs)


class CellStep(torch.autograd.Function):
    """Gives the states after one step of a cell their gradients: `apply(cell, [states], gates, x, h, c, *weights)` ->
    `states`: `h'` or, of an LSTM, `(h', c')`. Shapes are a cell's. `direct.run_cell` has run the kernels; in a list
    states are no inputs.
    """

    @staticmethod
    def forward(ctx: Any, cell: str, states: list[Any], *kept: Tensor | None) -> Any:
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        return states[0]

    @staticmethod
    @batching.handing_over
    def backward(ctx: Any, d_h: Tensor | None, d_c: Tensor | None = None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        gradients = None if dual_level() else _C.cell_backward(ctx.cell, needs, (d_h, d_c, *kept))
        if gradients is None:
            gradients = _cell_backward(ctx.cell, needs, d_h, d_c, *kept)
        return None, None, None, *gradients


def _cell_backward(
    cell: str, needs: Sequence[bool], d_h: Tensor | None, d_c: Tensor | None, gates: Tensor, *tensors: Tensor | None
) -> list[Tensor | None]:
    """Gradients of a cell's `x, h, c, *weights`, those of a layer of one step."""

    def of_layer(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.unsqueeze(0) if tensor.dim() == 2 else tensor[None, None]

    states, weights = tensors[:3], tensors[3:]
    x, h, c = map(of_layer, states)
    options = Options(0.0, cell, False, 1, False, True, False, False)
    layers = (x, h, c, *(None,) * (WEIGHTS - 3), *weights)
    gradients = _backward(options, needs, (None, of_layer(d_h), of_layer(d_c), None, None, None, gates, *layers))
    return [
        g.reshape(t.shape) if t is not None and wanted else None
        for g, t, wanted in zip(gradients, tensors, needs, strict=True)
    ]


def _keep_for_backward(ctx: Any, options: Options, tensors: Tensors, results: Sequence[Tensor]) -> None:
    y, _, c_n, cells, gates = results
    lstm = options.cell == "lstm"
    one_step = ops.steps(options, tensors) == 1  # Note [T == 1]
    ctx.options = options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *tensors,
        None if one_step else y,
        None if one_step or not lstm else cells,
        None if options.recompute else gates,
    )
    if not lstm:
        ctx.mark_non_differentiable(c_n, cells, gates)
    elif options.save or options.want_cells:
        ctx.mark_non_differentiable(gates)
    else:  # forward mode alone, for which the operator makes no cells
        ctx.mark_non_differentiable(cells, gates)


def _keep_for_double_backward(
    ctx: Any,
    options: Options,
    needs: Sequence[bool],
    tensors: Tensors,
    gradients: Sequence[Tensor],
) -> None:
    ctx.options = options
    ctx.needs = needs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors[:4], *tensors[7:])
    ctx.mark_non_differentiable(*(g for g, wanted in zip(gradients, needs, strict=True) if not wanted))


def _spread(needs: Sequence[bool], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of `x, h_0, c_0, *weights` in the places that those have among forward's tensors."""
    d_x, d_h_0, d_c_0, *d_weights = (g if wanted else None for g, wanted in zip(gradients, needs, strict=True))
    return d_x, d_h_0, d_c_0, *(None,) * (WEIGHTS - 3), *d_weights


# --- the rules of vmap ----------------------------------------------------------------------------------------------


def _forward_of_batch(options: Options, tensors: Tensors, dims: Sequence[int | None], size: int) -> tuple[Any, Any]:
    batching.check_batch_sizes(dims[5])
    there, inner = ops.present(options), batching.inner_shape(tensors[0], dims[0])
    if batching.foldable(options, tensors, dims):
        batch = batching.fold(tensors, dims, batching.TENSORS, size)
        return batching.unfold(_forward(options, batch), there, (*batching.RESULTS, 2), size, inner[1])
    members = batching.stack(tensors, dims, options.ensemble, size, keep=5)
    results = _forward(options._replace(ensemble=True), members)
    return batching.unstack(results, there, options.ensemble, size, inner[0])


def _backward_of_batch(
    options: Options, needs: Sequence[bool], tensors: Tensors, dims: Sequence[int | None], size: int
) -> tuple[Any, Any]:
    batching.check_batch_sizes(dims[7 + 5])
    # A folded batch would sum the gradients of shared weights over the vmapped dimension, unless every sample of
    # the batch has its own.
    of_weights, inner = any(needs[3:]), batching.inner_shape(tensors[7], dims[7])
    if batching.foldable(options, tensors[7:], dims[7:]) and (not of_weights or inner[1] == 1):
        batch = batching.fold(tensors, dims, batching.BACKWARD, size)
        gradients = _backward(options, needs, batch, per_sample=of_weights)
        states, there = batching.unfold(gradients[:3], needs[:3], (1, 1, 1), size, inner[1])
        return (*states, *gradients[3:]), (*there, *(0 if need else None for need in needs[3:]))
    members = batching.stack(tensors, dims, options.ensemble, size, keep=7 + 5)
    gradients = _backward(options._replace(ensemble=True), needs, members)
    return batching.unstack(gradients, needs, options.ensemble, size, inner[0])


# --- the Autograd kernels -------------------------------------------------------------------------------------------


def _forward_kernel(x, weights, *arguments):
    tensors = (x, *arguments[: WEIGHTS - 1], *weights)
    return _forward(Options(*arguments[WEIGHTS - 1 :]), tensors)


def _backward_kernel(d_y, d_h_n, d_c_n, d_cells, x, weights, *arguments, per_sample=False):
    *rest, recompute, y, cells, gates, needs = arguments
    tensors = (x, *rest[: WEIGHTS - 1], *weights)
    options = Options._make((*rest[WEIGHTS - 1 :], True, recompute, False))
    kept = (None if t.dim() == 1 else t for t in (y, cells, gates))  # empty: not there
    everything = (d_y, d_h_n, d_c_n, d_cells, *kept, *tensors)
    d_x, d_h_0, d_c_0, *d_weights = _backward(options, tuple(needs), everything, per_sample)
    return d_x, d_h_0, d_c_0, d_weights


_library = torch.library.Library("rnnkern", "IMPL")
_library.impl("layer_forward", _forward_kernel, "Autograd")
_library.impl("layer_backward", _backward_kernel, "Autograd")
