"""Derivatives of the operators, in every way that torch asks: the first by kernels, the others by the reference."""

import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import helpers
from comparison import assert_close
from helpers import CELLS, named, pairwise, problem
from rnnkern import autograd, ops, reference

every_cell = pytest.mark.parametrize("cell", CELLS)
two_cells = pytest.mark.parametrize("cell", ["lstm", "gru"])
every_schedule = pytest.mark.parametrize("schedule", helpers.SCHEDULES)
some_schedules = pytest.mark.parametrize("schedule", ["plain", "lengths+reset", "packed+reset"])

tiny = functools.partial(problem, steps=3, batch=2, input_size=2, hidden_size=2, padding=0.0)


def requiring_gradients(tensors):
    return [t.detach().requires_grad_() for t in tensors]


def loss(outputs):
    """A number that depends on every result in its own way, and not linearly."""
    return sum((place + 1) * (out * out).sum() + out.sin().sum() for place, out in enumerate(outputs))


def by_kernels(one):
    return lambda *inputs: one.run(inputs=inputs)


def by_reference(one):
    return lambda *inputs: one.run(reference.layer, inputs)


# --- gradcheck --------------------------------------------------------------------------------------------------------

GRADCHECK = pairwise(
    seed=3,
    cell=CELLS,
    schedule=helpers.SCHEDULES,
    width=helpers.WIDTHS,
    bidirectional=(False, True),
    bias=(True, False),
    layers=(1, 2),
    masks=helpers.MASKS,
    reset=helpers.RESETS,
    recompute=(False, True),
)


def stack(layers, recompute, **choice):
    """A function of all inputs of one layer, or of two: the second reads the first's output. And those inputs."""
    first = tiny(**choice)
    inputs = first.inputs
    if layers == 1:
        return lambda *values: first.run(inputs=values, recompute=recompute), inputs
    width = first.run()[0].shape[-1]
    second = tiny(**{**choice, "input_size": width})
    schedule = {name: first.tensors[name] for name in ("lengths", "reset_mask", "batch_sizes")}
    zones = {name: first.tensors[name] for name in ("zoneout_h", "zoneout_c")}
    second = helpers.replace(second, tensors={**second.tensors, **schedule, **zones})

    def function(*values):
        y, *rest = first.run(inputs=values[: len(inputs)], recompute=recompute)
        return *rest, *second.run(inputs=(y, *values[len(inputs) :]), recompute=recompute)

    return function, [*inputs, *second.inputs[1:]]


@pytest.mark.parametrize("choice", GRADCHECK, ids=named)
def test_gradcheck(choice, device):
    function, inputs = stack(**choice, device=device)
    assert torch.autograd.gradcheck(function, requiring_gradients(inputs), fast_mode=choice["layers"] == 2)


@pytest.mark.parametrize("choice", GRADCHECK, ids=named)
def test_gradgradcheck(choice, device):
    function, inputs = stack(**choice, device=device)
    assert torch.autograd.gradgradcheck(function, requiring_gradients(inputs), fast_mode=True)


@some_schedules
@every_cell
def test_forward_mode_and_forward_over_reverse(cell, schedule, device):
    one = tiny(cell, schedule, device=device, bidirectional=True)
    inputs = requiring_gradients(one.inputs)
    assert torch.autograd.gradcheck(by_kernels(one), inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(by_kernels(one), inputs, check_fwd_over_rev=True, fast_mode=True)


@some_schedules
@every_cell
def test_third_derivatives(cell, schedule, device):
    one = tiny(cell, schedule, device=device)

    def third(function):
        inputs = requiring_gradients(one.inputs)
        value = loss(function(*inputs))
        for _ in range(2):
            value = loss(torch.autograd.grad(value, inputs, create_graph=True))
        return torch.autograd.grad(value, inputs)

    assert_close(third(by_kernels(one)), third(by_reference(one)), gradient=True)


# --- opcheck ----------------------------------------------------------------------------------------------------------


def operator_arguments(one, save=True, recompute=False):
    """Of `layer_forward`."""
    tensors = (*(value for name, value in one.tensors.items() if name != "weights"), *one.tensors["weights"])
    options = ops.Options(one.zoneout, *one.options.values(), False, save, recompute, True)
    return tensors[0], list(tensors[ops.WEIGHTS :]), *tensors[1 : ops.WEIGHTS], *options


# One optional argument at a time; dynamic shapes and a traced backward are opcheck's own parts.
OPCHECK = [
    {},
    {"schedule": "lengths"},
    {"schedule": "reset"},
    {"schedule": "packed"},
    {"masks": "recurrent"},
    {"masks": "zoneout_train"},
    {"masks": "zoneout_eval"},
    {"bias": False},
    {"width": "projection"},
    {"width": "heads"},
    {"bidirectional": True},
]


@pytest.mark.parametrize("choice", OPCHECK, ids=named)
@two_cells
def test_opcheck_forward(cell, choice, device):
    one = tiny(cell, device=device, **choice)
    torch.library.opcheck(ops.layer_forward, operator_arguments(one, save=False))
    for recompute in (False, True):
        arguments = operator_arguments(one.requiring_gradients(), recompute=recompute)
        torch.library.opcheck(ops.layer_forward, arguments)


# Tracing the double backward takes seconds: one cell for each case.
@pytest.mark.parametrize(
    ("cell", "choice"),
    [("lstm" if case.get("width") == "projection" else "rnn_tanh", case) for case in OPCHECK] + [("gru", {})],
    ids=lambda value: named(value) if isinstance(value, dict) else value,
)  # fmt: skip
def test_opcheck_backward(cell, choice, device):
    one = tiny(cell, device=device, steps=2, **{"schedule": "plain", **choice}).requiring_gradients()
    arguments = operator_arguments(one)
    with torch.no_grad():
        *outputs, gates = ops.layer_forward(*arguments)
    y, _, _, cells = outputs
    d_outputs = [torch.randn_like(out).requires_grad_() if out.numel() else None for out in outputs]
    needs = [True, True, cell == "lstm", *[True] * len(arguments[1])]
    torch.library.opcheck(ops.layer_backward, (*d_outputs, *arguments[:15], False, y, cells, gates, needs))


@two_cells
def test_opcheck_backward_of_some_results_to_some_inputs(cell, device):
    one = tiny(cell, device=device, steps=2)
    arguments = operator_arguments(one, recompute=True)
    y, h_n, _, cells, gates = ops.layer_forward(*arguments)
    for d_outputs in ((torch.ones_like(y), None, None, None), (None, torch.ones_like(h_n), None, None), (None,) * 4):
        needs = [False, True, False, True, False, True, False]
        torch.library.opcheck(ops.layer_backward, (*d_outputs, *arguments[:15], True, y, cells, gates, needs))


def test_without_save_the_operator_is_still_differentiable(device):
    one = tiny(device=device).requiring_gradients()
    y, *_ = ops.layer_forward(*operator_arguments(one, save=False))
    expected = one.run(reference.layer)[0]
    found = torch.autograd.grad(y.sum(), one.inputs)
    assert_close(found, torch.autograd.grad(expected.sum(), one.inputs), gradient=True)


# --- torch.compile and torch.export -----------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """`autograd.layer` with the weights of a problem as parameters, and its schedule and masks."""

    def __init__(self, one):
        super().__init__()
        self.weights = torch.nn.ParameterList(one.tensors["weights"])
        given = ("x", "h_0", "c_0", "weights")
        self.rest = {name: value for name, value in one.tensors.items() if name not in given and value is not None}
        self.options = {"zoneout": one.zoneout, "want_cells": True, **one.options}

    def forward(self, x, h_0, c_0=None):
        results = autograd.layer(x, list(self.weights), h_0, c_0, **self.rest, **self.options)
        return tuple(result for result in results if result is not None)


def inputs_of(one):
    return tuple(t for name in ("x", "h_0", "c_0") if (t := one.tensors[name]) is not None)


@pytest.mark.parametrize("masks", helpers.MASKS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@two_cells
def test_compiled_without_a_graph_break(cell, backend, masks, device):
    torch._dynamo.reset()
    one = problem(cell, "lengths+reset", masks=masks, device=device, padding=0.0)
    module = Layer(one)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    inputs = requiring_gradients(inputs_of(one))
    differentiable = [*inputs, *module.parameters()]
    expected = torch.autograd.grad(loss(module(*inputs)), differentiable)
    assert_close(torch.autograd.grad(loss(compiled(*inputs)), differentiable), expected, gradient=True)
    with torch.no_grad():
        assert_close(compiled(*inputs), module(*inputs))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@two_cells
def test_compiled_with_dynamic_shapes(cell, backend, device):
    torch._dynamo.reset()
    module = Layer(problem(cell, device=device, steps=5, batch=6))
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    for steps, batch in ((5, 6), (7, 2), (9, 8)):  # no two sizes are equal: the compiler would tie those together
        inputs = inputs_of(problem(cell, device=device, steps=steps, batch=batch))
        parameters = list(module.parameters())
        expected = torch.autograd.grad(loss(module(*inputs)), parameters)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = torch.autograd.grad(loss(compiled(*inputs)), parameters)
        assert_close(found, expected, gradient=True)


@pytest.mark.parametrize("strict", [False, True])
@two_cells
def test_exported_with_dynamic_shapes(cell, strict, device):
    one = problem(cell, device=device)
    module, inputs = Layer(one), inputs_of(one)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    shapes = tuple({0: steps, 1: batch} if place == 0 else {1: batch} for place in range(len(inputs)))
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
    for exported in (program.module(), program.run_decompositions().module()):
        others = inputs_of(problem(cell, device=device, steps=8, batch=3))
        assert_close(exported(*others), module(*others))


# --- torch.func -------------------------------------------------------------------------------------------------------

# What a vmap goes over, by the place of an input: x alone (folded into the batch), the weights (an ensemble), or all.
BATCHED = {"x": lambda place, first_weight: place == 0,
           "weights": lambda place, first_weight: place >= first_weight,
           "all": lambda place, first_weight: True}  # fmt: skip


def batched_inputs(one, over, dim):
    first_weight = 3 if one.options["cell"] == "lstm" else 2
    dims = tuple(dim if BATCHED[over](place, first_weight) else None for place in range(len(one.inputs)))
    inputs = [t if d is None else torch.stack([t, 0.5 * t, t.cos()], d) for t, d in zip(one.inputs, dims, strict=True)]
    return inputs, dims


@pytest.mark.parametrize("over", BATCHED)
@some_schedules
@every_cell
def test_vmap(cell, schedule, over, device):
    one = tiny(cell, schedule, device=device, bidirectional=True, masks="recurrent+zoneout_train")
    inputs, dims = batched_inputs(one, over, dim=-1)
    assert_close(vmap(by_kernels(one), dims)(*inputs), vmap(by_reference(one), dims)(*inputs))


@pytest.mark.parametrize("over", BATCHED)
@some_schedules
@every_cell
def test_vmap_of_grad_and_grad_of_vmap(cell, schedule, over, device):
    one = tiny(cell, schedule, device=device, bidirectional=True)
    inputs, dims = batched_inputs(one, over, dim=0)
    places = tuple(range(len(inputs)))

    def per_sample(function):
        return vmap(grad(lambda *values: loss(function(*values)), places), dims)(*inputs)

    def of_all(function):
        return grad(lambda *values: loss(vmap(function, dims)(*values)), places)(*inputs)

    assert_close(per_sample(by_kernels(one)), per_sample(by_reference(one)), gradient=True)
    assert_close(of_all(by_kernels(one)), of_all(by_reference(one)), gradient=True)


@some_schedules
@two_cells
def test_vmap_in_vmap(cell, schedule, device):
    one = tiny(cell, schedule, device=device)
    inputs, inner = batched_inputs(one, "x", dim=0)
    stacked = [torch.stack([t, 2 * t]) for t in inputs]

    def per_sample(function):
        gradients = grad(lambda *values: loss(function(*values)), tuple(range(len(inputs))))
        return vmap(vmap(gradients, inner))(*stacked), vmap(vmap(gradients))(*twice)

    twice = [torch.stack([t, 2 * t]) for t in batched_inputs(one, "all", dim=0)[0]]
    assert_close(per_sample(by_kernels(one)), per_sample(by_reference(one)), gradient=True)


def test_vmap_over_lengths_and_reset_masks(device):
    one = tiny("lstm", "lengths+reset", device=device)

    def run(function, lengths, reset_mask):
        tensors = {**one.tensors, "lengths": lengths, "reset_mask": reset_mask}
        return helpers.replace(one, tensors=tensors).run(function)

    lengths = torch.tensor([[3, 0], [1, 2]], device=device)
    reset_masks = torch.rand(2, 3, 2, device=device) < 0.5
    found = vmap(functools.partial(run, None))(lengths, reset_masks)
    expected = vmap(functools.partial(run, reference.layer))(lengths, reset_masks)
    assert_close(found, expected)


def test_vmap_refuses_batched_batch_sizes(device):
    one = tiny("lstm", "packed", device=device)

    def run(batch_sizes):
        return helpers.replace(one, tensors={**one.tensors, "batch_sizes": batch_sizes}).run()

    sizes = one.tensors["batch_sizes"]
    with pytest.raises(ValueError, match="batch_sizes: expected one tensor for the whole of a vmap, got a batched one"):
        vmap(run)(torch.stack([sizes, sizes]))


@pytest.mark.parametrize("transform", [jacfwd, jacrev, hessian], ids=lambda transform: transform.__name__)
@some_schedules
@every_cell
def test_jacobians_and_hessians(cell, schedule, transform, device):
    one = tiny(cell, schedule, device=device)
    places = tuple(range(len(one.inputs)))

    def derivative(function):
        target = (lambda *values: loss(function(*values))) if transform is hessian else function
        return transform(target, places)(*one.inputs)

    assert_close(derivative(by_kernels(one)), derivative(by_reference(one)), gradient=True)


NESTED = [(jacfwd, jacfwd), (jacrev, jacfwd), (jacrev, jacrev), (jacfwd, jacfwd, jacfwd), (jacrev, jacfwd, jacrev)]


@pytest.mark.parametrize("transforms", NESTED, ids=lambda transforms: "-".join(t.__name__ for t in transforms))
@two_cells
def test_nested_transforms(cell, transforms, device):
    one = tiny(cell, device=device, steps=2, batch=1)

    def derivative(function):
        nested = lambda *values: loss(function(*values))  # noqa: E731
        for transform in reversed(transforms):
            nested = transform(nested)
        return nested(*one.inputs)

    assert_close(derivative(by_kernels(one)), derivative(by_reference(one)), gradient=True)


@some_schedules
@every_cell
def test_jvp_of_some_inputs(cell, schedule, device):
    one = tiny(cell, schedule, device=device)
    x, *others = one.inputs

    def derivative(function):
        return jvp(lambda x, weight: function(x, *others[:-1], weight), (x, others[-1]), (x.cos(), others[-1].sin()))

    assert_close(derivative(by_kernels(one)), derivative(by_reference(one)), gradient=True)


@two_cells
def test_a_pullback_outlives_its_transform(cell, device):
    one = tiny(cell, device=device)
    outputs, pullback = vjp(by_kernels(one), *one.inputs)
    expected, expected_pullback = vjp(by_reference(one), *one.inputs)
    d_outputs = tuple(out.cos() for out in expected)
    assert_close(pullback(d_outputs), expected_pullback(d_outputs), gradient=True)
    several = tuple(torch.stack([d, 2 * d]) for d in d_outputs)
    assert_close(vmap(pullback)(several), vmap(expected_pullback)(several), gradient=True)


@two_cells
def test_functional_call_under_transforms(cell, device):
    one = tiny(cell, device=device)
    module, inputs = Layer(one), inputs_of(one)
    parameters = dict(module.named_parameters())
    found = grad(lambda values: loss(functional_call(module, values, inputs)))(parameters)
    expected = torch.autograd.grad(loss(module(*inputs)), list(parameters.values()))
    assert_close(list(found.values()), expected, gradient=True)


# --- plain autograd ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want", ["tangent alone", "gradient too"])
@every_cell
def test_dual_tensors(cell, want, device):
    one = tiny(cell, "lengths+reset", device=device)
    inputs = requiring_gradients(one.inputs) if want == "gradient too" else one.inputs
    tangents = [t.detach().cos() for t in inputs]

    def derivative(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, tangent) for t, tangent in zip(inputs, tangents, strict=True)]
            outputs = [forward_ad.unpack_dual(out) for out in function(*duals)]
        results = [*(out.primal for out in outputs), *(out.tangent for out in outputs)]
        return results, torch.autograd.grad(loss(results), inputs) if want == "gradient too" else ()

    assert_close(derivative(by_kernels(one)), derivative(by_reference(one)), gradient=True)


@every_schedule
@every_cell
def test_backward_twice_over_a_retained_graph(cell, schedule, device):
    one = tiny(cell, schedule, device=device).requiring_gradients()
    value = loss(one.run())
    first = torch.autograd.grad(value, one.inputs, retain_graph=True)
    second = torch.autograd.grad(value, one.inputs)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("result", range(4), ids=["y", "h_n", "c_n", "cells"])
@every_cell
def test_gradients_through_one_result_alone(cell, result, device):
    one = tiny(cell, "lengths", device=device, bidirectional=True).requiring_gradients()
    outputs, expected = one.run(), one.run(reference.layer)
    result = min(result, len(outputs) - 1)
    found = torch.autograd.grad(outputs[result].sin().sum(), one.inputs, materialize_grads=True)
    wanted = torch.autograd.grad(expected[result].sin().sum(), one.inputs, materialize_grads=True)
    assert_close(found, wanted, gradient=True)


@every_cell
def test_every_input_alone_gets_its_gradient(cell, device):
    one = tiny(cell, device=device)
    expected = torch.autograd.grad(loss(by_reference(one)(*(full := requiring_gradients(one.inputs)))), full)
    for place, gradient in enumerate(expected):
        inputs = list(one.inputs)
        inputs[place] = inputs[place].detach().requires_grad_()
        assert_close(torch.autograd.grad(loss(one.run(inputs=inputs)), inputs[place]), gradient, gradient=True)


@every_cell
def test_frozen_parameters_cost_nothing(cell, device, monkeypatch):
    asked = []
    original = ops.backward
    monkeypatch.setattr(ops, "backward", lambda *arguments: asked.append(arguments[1]) or original(*arguments))
    one = tiny(cell, device=device)
    inputs = [t.detach().requires_grad_(place in (0, len(one.inputs) - 1)) for place, t in enumerate(one.inputs)]
    loss(one.run(inputs=inputs)).backward()
    assert asked == [(True, False, False, *[False] * (len(one.tensors["weights"]) - 1), True)]


@every_cell
def test_results_of_one_step_can_be_changed_in_place(cell, device):
    one = tiny(cell, device=device, steps=1).requiring_gradients()

    def changed(outputs):
        return sum(out.relu_().sin().sum() for out in outputs)

    found = torch.autograd.grad(changed(one.run()), one.inputs)
    assert_close(found, torch.autograd.grad(changed(one.run(reference.layer)), one.inputs), gradient=True)


@pytest.mark.parametrize("result", [0, 3], ids=["y", "cells"])
def test_a_changed_output_that_backward_needs_is_noticed(result, device):
    outputs = tiny("lstm", device=device).requiring_gradients().run()
    outputs[result].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs[1].sum().backward()


def test_nothing_is_saved_without_a_gradient(device):
    one = tiny("lstm", device=device)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert all(out.grad_fn is None for out in one.requiring_gradients().run())
    assert all(out.grad_fn is None for out in one.run())


def test_what_is_saved_without_gates(device):
    def saved(recompute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            one.run(recompute=recompute)
        return sum(sizes)

    one = problem("lstm", device=device, steps=5, batch=4, hidden_size=4).requiring_gradients()
    assert saved(False) - saved(True) == 4 * 5 * 4 * 4  # gates, steps, batch, hidden


@pytest.mark.parametrize("reentrant", [False, True])
@two_cells
def test_checkpointing(cell, reentrant, device):
    one = tiny(cell, device=device)

    def gradients(wrapped):
        inputs = requiring_gradients(one.inputs)
        loss(wrapped(by_kernels(one), *inputs)).backward()
        return [t.grad for t in inputs]

    found = gradients(lambda function, *inputs: checkpoint(function, *inputs, use_reentrant=reentrant))
    assert_close(found, gradients(lambda function, *inputs: function(*inputs)), gradient=True)


@two_cells
def test_double_backward_under_hooks_on_saved_tensors(cell, device):
    one = tiny(cell, device=device)

    def second(function):
        inputs = requiring_gradients(one.inputs)
        with torch.autograd.graph.save_on_cpu():
            first = torch.autograd.grad(loss(function(*inputs)), inputs, create_graph=True)
            return torch.autograd.grad(loss(first), inputs)

    assert_close(second(by_kernels(one)), second(by_reference(one)), gradient=True)


@every_cell
def test_meta_tensors_have_the_right_shapes(cell):
    one = tiny(cell, bidirectional=True).requiring_gradients()
    meta = one.converted(lambda t: t.detach().to("meta").requires_grad_(t.requires_grad))
    outputs = meta.run()
    assert [out.shape for out in outputs] == [out.shape for out in one.run()]
    gradients = torch.autograd.grad(loss(outputs), meta.inputs)
    assert [g.shape for g in gradients] == [t.shape for t in one.inputs]
