"""The operators and the layers under the transforms of torch.func and of torch.autograd.functional."""

import functools

import pytest
import torch
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import helpers
from comparison import assert_close
from helpers import (
    Layer,
    by_kernels,
    by_reference,
    every_cell,
    inputs_of,
    loss,
    some_schedules,
    tiny,
    two_cells,
)
from rnnkern import reference

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


@two_cells
def test_per_sample_gradients_in_a_vmap(cell, device):
    one = tiny(cell, device=device, batch=1)
    x, *others = one.inputs
    several = torch.stack([torch.stack([x, x.cos()]), torch.stack([2 * x, x.sin()]), torch.stack([-x, x / 2])])

    def per_sample(function):
        gradients = grad(lambda *values: loss(function(*values)), tuple(range(len(one.inputs))))
        of_one = lambda x: gradients(x, *others)  # noqa: E731
        return vmap(vmap(of_one))(several), vmap(vmap(of_one), 1)(several)

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
def test_a_tensor_outlives_its_transform(cell, device):
    one = tiny(cell, device=device)
    x, *others, weight = one.inputs
    kept = []
    grad(lambda x: kept.append(x) or x.sum())(x)

    def derivative(function, x):
        return grad(lambda weight: loss(function(x, *others, weight)))(weight)

    assert_close(by_kernels(one)(kept[0], *others, weight), by_reference(one)(*one.inputs))
    assert_close(derivative(by_kernels(one), kept[0]), derivative(by_reference(one), x), gradient=True)


@two_cells
def test_functionalize_around_and_inside_other_transforms(cell, device):
    one = tiny(cell, device=device)
    places = tuple(range(len(one.inputs)))

    def gradients(function, around):
        target = lambda *values: loss(function(*values))  # noqa: E731
        return functionalize(grad(target, places)) if around else grad(functionalize(target), places)

    for around in (True, False):
        found = gradients(by_kernels(one), around)(*one.inputs)
        assert_close(found, grad(lambda *values: loss(by_reference(one)(*values)), places)(*one.inputs), gradient=True)
    weighted = [t.clone().requires_grad_() for t in one.inputs]
    found = torch.autograd.grad(loss(functionalize(by_kernels(one))(*weighted)), weighted)
    assert_close(found, torch.autograd.grad(loss(by_reference(one)(*weighted)), weighted), gradient=True)


@pytest.mark.parametrize("inside", [False, True])
@two_cells
def test_no_grad_around_and_inside_a_transform(cell, inside, device):
    one = tiny(cell, device=device)

    def derivative(function):
        def target(*values):
            with torch.set_grad_enabled(not inside):
                constant = function(*values)
            return loss(constant) + loss(function(*values))

        with torch.set_grad_enabled(inside):
            return grad(target, tuple(range(len(one.inputs))))(*one.inputs)

    assert_close(derivative(by_kernels(one)), derivative(by_reference(one)), gradient=True)


@two_cells
def test_functional_call_under_transforms(cell, device):
    one = tiny(cell, device=device)
    module, inputs = Layer(one), inputs_of(one)
    parameters = dict(module.named_parameters())
    found = grad(lambda values: loss(functional_call(module, values, inputs)))(parameters)
    expected = torch.autograd.grad(loss(module(*inputs)), list(parameters.values()))
    assert_close(list(found.values()), expected, gradient=True)
