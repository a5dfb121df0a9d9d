"""Derivatives of the operators, in every way that torch asks: the first by kernels, the others by the reference."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import helpers
from comparison import assert_close
from helpers import (
    CELLS,
    by_kernels,
    by_reference,
    every_cell,
    every_schedule,
    loss,
    named,
    pairwise,
    problem,
    requiring_gradients,
    some_schedules,
    tiny,
    two_cells,
)
from rnnkern import ops, reference

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
    from_zero=(False, True),
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


def operator_arguments(one, save=True, recompute=False, ensemble=False):
    """Of `layer_forward`."""
    tensors = (*(value for name, value in one.tensors.items() if name != "weights"), *one.tensors["weights"])
    options = ops.Options(one.zoneout, *one.options.values(), ensemble, save, recompute, True)
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
    {"from_zero": True},
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
    needs = [True, *(state is not None for state in arguments[2:4]), *[True] * len(arguments[1])]
    torch.library.opcheck(ops.layer_backward, (*d_outputs, *arguments[:15], False, y, cells, gates, needs))


@pytest.mark.parametrize(("cell", "schedule"), [("lstm", "plain"), ("rnn_tanh", "lengths+reset")])
def test_opcheck_of_an_ensemble(cell, schedule, device):
    one = tiny(cell, schedule, device=device, steps=2, masks="recurrent+zoneout_train")
    members = one.converted(lambda t: torch.stack([t, t]))
    torch.library.opcheck(ops.layer_forward, operator_arguments(members, save=False, ensemble=True))
    arguments = operator_arguments(members.requiring_gradients(), ensemble=True)
    torch.library.opcheck(ops.layer_forward, arguments)
    with torch.no_grad():
        *outputs, gates = ops.layer_forward(*arguments)
    y, _, _, cells = outputs
    d_outputs = [torch.randn_like(out).requires_grad_() if out.numel() else None for out in outputs]
    needs = [True, True, cell == "lstm", *[True] * len(arguments[1])]
    torch.library.opcheck(ops.layer_backward, (*d_outputs, *arguments[:15], False, y, cells, gates, needs))


@pytest.mark.parametrize(("cell", "schedule"), [("lstm", "plain"), ("rnn_tanh", "lengths+reset")])
def test_opcheck_of_per_sample_gradients(cell, schedule, device):
    one = tiny(cell, schedule, device=device, steps=2).requiring_gradients()
    arguments = operator_arguments(one)
    with torch.no_grad():
        *outputs, gates = ops.layer_forward(*arguments)
    y, _, _, cells = outputs
    d_outputs = [torch.randn_like(out).requires_grad_() if out.numel() else None for out in outputs]
    needs = [True, True, cell == "lstm", *[True] * len(arguments[1])]
    call = (*d_outputs, *arguments[:15], False, y, cells, gates, needs)
    torch.library.opcheck(ops.layer_backward, call, {"per_sample": True})


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
    original = ops.backward_below_autograd
    monkeypatch.setattr(
        ops, "backward_below_autograd", lambda *arguments: asked.append(arguments[1]) or original(*arguments)
    )
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
    with torch.inference_mode(), torch.enable_grad():  # which records nothing either
        results = one.requiring_gradients().run()
    assert all(out.is_inference() and not out.requires_grad for out in results)
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
