"""Layers and cells under torch.func: ensembles, per-sample gradients, derivatives, random masks; batched gradients."""

import copy

import pytest
import torch
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jvp, stack_module_state, vmap

import rnnkern
from comparison import assert_close, pair, random_like, states, tensors_of, without_cudnn
from helpers import OperatorCalls
from layer_inputs import every_layer, packed, padded


def stacked(results):
    """Results of several calls, as the result of one that was vmapped."""
    return [torch.stack(tensors) for tensors in zip(*map(tensors_of, results), strict=True)]


def ensemble(name, device, members=3, sizes=(5, 8), **options):
    """`(layers, function of their stacked parameters, those parameters)`."""
    layers = [getattr(rnnkern, name)(*sizes, **options, dtype=torch.float64, device=device) for _ in range(members)]
    parameters, buffers = stack_module_state(layers)
    shape = copy.deepcopy(layers[0]).to("meta")
    return layers, lambda values, *call: functional_call(shape, (values, buffers), call), parameters


# --- ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["shared", "own"])
@every_layer
def test_an_ensemble_is_one_operator_call_a_layer(name, inputs, device):
    layers, function, parameters = ensemble(name, device, num_layers=2, bidirectional=True)
    shared = inputs == "shared"
    x = padded(device=device) if shared else torch.stack([padded(device=device) * (n + 1) for n in range(3)])
    with OperatorCalls() as operators:
        found = vmap(lambda values, x: tensors_of(function(values, x)), (0, None if shared else 0))(parameters, x)
        gradients = torch.autograd.grad(found, list(parameters.values()), random_like(found))
    assert operators.names == ["layer_forward"] * 2 + ["layer_backward"] * 2
    assert all(given["ensemble"] for _, given in operators.calls)

    expected = stacked(layer(x if shared else x[n]) for n, layer in enumerate(layers))
    assert_close(found, expected)
    weights = [list(layer.parameters()) for layer in layers]
    of_each = torch.autograd.grad(expected, sum(weights, []), random_like(expected))
    assert_close(gradients, [torch.stack(of_each[k :: len(weights[0])]) for k in range(len(weights[0]))], gradient=True)


@every_layer
def test_an_ensemble_takes_lengths_resets_and_packed_sequences(name, device):
    layers, function, parameters = ensemble(name, device)
    x, lengths = padded(device=device), torch.tensor([3, 0, 6, 1], device=device)
    reset_mask = torch.rand(6, 4, device=device) < 0.3
    hx = states(layers[0], 4, device=device)

    def scheduled(values):
        keywords = {"lengths": lengths, "reset_mask": reset_mask}
        return tensors_of(functional_call(layers[0], values, (x, hx), keywords))

    with OperatorCalls() as operators:
        found = vmap(scheduled)(parameters)
    assert operators.names == ["layer_forward"]
    assert_close(found, stacked(layer(x, hx, lengths=lengths, reset_mask=reset_mask) for layer in layers))

    masks = torch.rand(len(layers), 6, 4, device=device) < 0.3
    found = vmap(lambda values, mask: tensors_of(functional_call(layers[0], values, (x, hx), {"reset_mask": mask})))(
        parameters, masks
    )
    assert_close(found, stacked(layer(x, hx, reset_mask=mask) for layer, mask in zip(layers, masks, strict=True)))

    sequences = packed(device=device)
    with OperatorCalls() as operators:
        found = vmap(lambda values: tensors_of(function(values, sequences)))(parameters)
    assert operators.names == ["layer_forward"]
    assert_close(found, stacked(layer(sequences) for layer in layers))


@every_layer
def test_a_training_step_of_an_ensemble_is_each_members_own(name, device):
    layers, function, parameters = ensemble(name, device)
    x, target = padded(device=device), padded(device=device, size=8)

    def loss(values):
        return (function(values, x)[0] - target).square().mean()

    gradients, values = vmap(grad_and_value(loss))(parameters)
    for n, layer in enumerate(layers):
        value = (layer(x)[0] - target).square().mean()
        value.backward()
        assert_close(values[n], value)
        for key, parameter in layer.named_parameters():
            assert_close(parameters[key][n] - 0.1 * gradients[key][n], parameter - 0.1 * parameter.grad)


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"bidirectional": True}], ids=str)
@every_layer
def test_members_share_threads_and_memory_and_nothing_else(name, options, threads):
    layers, function, parameters = ensemble(name, "cpu", members=6, sizes=(40, 48), **options)
    x, lengths = padded(steps=12, size=40), torch.tensor([12, 3, 0, 7])  # work enough for several threads
    x.requires_grad_()

    def of_one(values, lengths):
        return functional_call(layers[0], values, (x,), {"lengths": lengths})[0]

    of_each = torch.stack([lengths.roll(n) for n in range(6)])
    alone = torch.stack([layer(x, lengths=lengths)[0] for layer, lengths in zip(layers, of_each, strict=True)])
    d_y = torch.randn_like(alone)
    leaves = [x, *(weight for layer in layers for weight in layer.parameters())]
    d_x, *d_weights = torch.autograd.grad(alone, leaves, d_y)
    count = len(parameters)
    d_weights = [torch.stack(d_weights[k::count]) for k in range(count)]
    for workers in (1, 2, 3, 4):
        threads(workers)
        found = vmap(of_one)(parameters, of_each)
        assert_close(found, alone)
        gradients = torch.autograd.grad(found, [x, *parameters.values()], d_y)
        assert_close(gradients, [d_x, *d_weights], gradient=True)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_an_ensemble_of_cells_is_one_operator_call(name, device):
    cells, function, parameters = ensemble(name, device)
    x = torch.randn(4, 5, dtype=torch.float64, device=device)
    with OperatorCalls() as operators:
        found = vmap(lambda values: tensors_of(function(values, x)))(parameters)
    assert operators.names == ["layer_forward"]
    assert_close(found, stacked(cell(x) for cell in cells))


# --- per-sample gradients ---------------------------------------------------------------------------------------------


@every_layer
def test_per_sample_gradients_are_one_operator_call_each_way(name, device):
    ours, theirs = pair(name, 5, 8, device=device)
    x, lengths = padded(device=device), torch.tensor([3, 1, 6, 2], device=device)
    reset_mask = torch.rand(6, 4, device=device) < 0.3

    def loss(values, x, **schedule):
        return functional_call(ours, values, (x,), schedule)[0].square().sum()

    parameters = {key: value.detach() for key, value in ours.named_parameters()}
    with OperatorCalls() as operators:
        found = vmap(grad(loss), (None, 1))(parameters, x)
    assert operators.names == ["layer_forward", "layer_backward"]
    assert not any(given["ensemble"] for _, given in operators.calls)  # shared weights are packed and multiplied once
    for b in range(4):
        with without_cudnn():
            value = theirs(x[:, b])[0].square().sum()
        expected = torch.autograd.grad(value, list(theirs.parameters()))
        assert_close([found[key][b] for key in parameters], expected, gradient=True)

    def scheduled(values, x, lengths, reset_mask):
        return loss(values, x, lengths=lengths, reset_mask=reset_mask)

    found = vmap(grad(scheduled), (None, 1, 0, 1))(parameters, x, lengths, reset_mask)
    for b in range(4):
        alone = grad(scheduled)(parameters, x[:, b], lengths[b], reset_mask[:, b])
        assert_close([found[key][b] for key in parameters], list(alone.values()), gradient=True)


OPTIONS = [{"bias": False}, {"heads": 2}, {"bidirectional": True}, {"recompute": True}]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
@every_layer
def test_per_sample_gradients_of_every_kind_of_layer(name, option, device):
    projection = {"proj_size": 4} if name == "LSTM" and "heads" not in option else {}
    layer = getattr(rnnkern, name)(5, 8, 2, **option, **projection, dtype=torch.float64, device=device)
    x = padded(device=device)
    hx = states(layer, 4, device=device)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(values, x, *hx):
        return functional_call(layer, values, (x, hx if name == "LSTM" else hx[0]))[0].square().sum()

    hx = hx if name == "LSTM" else (hx,)
    everything = tuple(range(2 + len(hx)))
    found = vmap(grad(loss, everything), (None, 1, *(1 for _ in hx)))(parameters, x, *hx)
    for b in range(4):
        alone = grad(loss, everything)(parameters, x[:, b], *(h[:, b] for h in hx))
        assert_close(
            [*(found[0][key][b] for key in parameters), *(value[b] for value in found[1:])],
            [*alone[0].values(), *alone[1:]],
            gradient=True,
        )


@every_layer
def test_no_samples_and_no_members_have_no_gradients(name, device):
    """As a batch drawn for differential privacy may be empty."""
    layer = getattr(rnnkern, name)(5, 8, device=device)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def run(values, x):
        return functional_call(layer, values, (x,))[0]

    def loss(values, x):
        return run(values, x).square().sum()

    found = vmap(grad(loss), (None, 1))(parameters, torch.randn(6, 0, 5, device=device))
    assert {key: value.shape for key, value in found.items()} == {k: (0, *v.shape) for k, v in parameters.items()}
    none = {key: value.new_empty(0, *value.shape) for key, value in parameters.items()}
    x = torch.randn(6, 2, 5, device=device)
    assert vmap(run, (0, None))(none, x).shape == (0, 6, 2, 8)
    found = vmap(grad(loss), (0, None))(none, x)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in none.items()}


@every_layer
def test_a_tangent_needs_a_gradient_where_something_does(name, device):
    x = torch.randn(6, 4, 5, device=device)
    for needed in (False, True):
        layer = getattr(rnnkern, name)(5, 8, device=device).requires_grad_(needed)
        with forward_ad.dual_level():
            y, _ = layer(forward_ad.make_dual(x, torch.ones_like(x)))
            tangent = forward_ad.unpack_dual(y).tangent
        assert tangent.requires_grad == needed


@every_layer
def test_per_sample_gradients_are_differentiable(name, device):
    layer = getattr(rnnkern, name)(2, 3, dtype=torch.float64, device=device)
    x = padded(device=device, steps=3, batch=2, size=2)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(values, x):
        return functional_call(layer, values, (x,))[0].square().sum()

    def penalty(values, x):  # of the norm of each sample's gradient
        return sum(g.square().sum() for g in vmap(grad(loss), (None, 1))(values, x).values())

    def slowly(values, x):
        gradients = [grad(loss)(values, x[:, b]) for b in range(2)]
        return sum(g.square().sum() for each in gradients for g in each.values())

    expected = grad(slowly, (0, 1))(parameters, x)
    found = grad(penalty, (0, 1))(parameters, x)
    assert_close([*found[0].values(), found[1]], [*expected[0].values(), expected[1]], gradient=True)
    x.requires_grad_()
    assert_close(torch.autograd.grad(penalty(parameters, x), x)[0], expected[1], gradient=True)


# --- derivatives of a module ------------------------------------------------------------------------------------------


@every_layer
def test_a_hessian_and_a_jacobian_by_forward_mode(name, device):
    ours, theirs = pair(name, 2, 3, device=device)
    x = padded(device=device, steps=3, batch=2, size=2)

    def loss(layer):
        return lambda x: layer(x)[0].square().sum()

    with without_cudnn():
        expected = functional.hessian(loss(theirs), x), functional.jacobian(lambda x: theirs(x)[0], x)
    assert_close((hessian(loss(ours))(x), jacfwd(lambda x: ours(x)[0])(x)), expected, gradient=True)


@pytest.mark.parametrize("name", ["GRU", "RNN"])  # torch.nn's LSTM has no forward mode
def test_what_is_computed_without_gradients_stays_so_under_transforms(name, device):
    ours, theirs = pair(name, 3, 4, device=device)
    x = padded(device=device, steps=5, batch=2, size=3)

    def without(layer, x):
        with torch.no_grad():
            return layer(x)[0]

    def around_jvp(layer):
        with torch.no_grad():
            return jvp(lambda x: layer(x)[0], (x,), (x,))

    def teacher(layer):
        return grad(lambda y: (y - without(layer, x)).square().sum())(torch.ones_like(x[..., :1]))

    def nested(layer):
        return grad(lambda x: grad(lambda x: x.sum() * without(layer, x).sum())(x).sum())(x)

    with without_cudnn():
        for attempt in (around_jvp, teacher, nested):
            if attempt is around_jvp and name == "GRU" and device == "cuda":
                continue  # torch.nn's fused kernel has no forward mode there
            found, expected = tensors_of(attempt(ours)), tensors_of(attempt(theirs))
            assert_close(found, expected, gradient=True)
            assert not any(tensor.requires_grad for tensor in (*found, *expected))


@every_layer
def test_only_what_is_differentiated_is_computed(name, device):
    layer = getattr(rnnkern, name)(5, 8, dtype=torch.float64, device=device)
    with OperatorCalls() as operators:
        grad(lambda x: layer(x)[0].sum())(padded(device=device))
    (_, _), (operator, given) = operators.calls
    assert operator == "layer_backward" and given["needs"] == [True, *[False] * 6]


# --- random masks -----------------------------------------------------------------------------------------------------

RANDOM = [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"weight_dropout": 0.5}, {"zoneout": 0.5}]


@pytest.mark.parametrize("option", RANDOM, ids=lambda option: next(iter(option)))
@every_layer
def test_random_masks_under_vmap_are_the_same_or_different_as_asked(name, option, device):
    layer = getattr(rnnkern, name)(5, 8, 2, **option, dtype=torch.float64, device=device)
    twice = torch.stack([padded(device=device)] * 2)
    first, second = vmap(layer, randomness="same")(twice)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, layer.eval()(twice[0])[0])
    first, second = vmap(layer.train(), randomness="different")(twice)[0]
    assert not torch.equal(first, second)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(layer)(twice)
    _, function, parameters = ensemble(name, device, num_layers=2, **option)
    equal = {key: value[:1].expand_as(value) for key, value in parameters.items()}
    for randomness in ("same", "different"):
        y = vmap(lambda values: function(values, twice[0])[0], randomness=randomness)(equal)
        assert torch.equal(y[0], y[1]) == (randomness == "same")


# --- batches of gradients, by torch.autograd --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["padded", "packed"])
@every_layer
def test_batched_gradients_are_those_of_a_loop(name, kind, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    x = packed(device=device) if kind == "packed" else padded(device=device)
    leaf = x.data.requires_grad_() if kind == "packed" else x.requires_grad_()
    outputs = tensors_of(ours(x, states(ours, 4, device=device)))
    leaves = [leaf, *ours.parameters()]
    batches = [torch.stack([d, 2 * d, d.cos()]) for d in random_like(outputs)]
    found = torch.autograd.grad(outputs, leaves, batches, is_grads_batched=True, retain_graph=True)
    loop = [torch.autograd.grad(outputs, leaves, [d[k] for d in batches], retain_graph=True) for k in range(3)]
    assert_close(found, stacked(loop), gradient=True)

    def of_one(*d_outputs):
        return torch.autograd.grad(outputs, leaves, d_outputs, retain_graph=True)

    assert_close(vmap(of_one)(*batches), stacked(loop), gradient=True)
    some = torch.autograd.grad(outputs[0], leaves[1], batches[0], is_grads_batched=True)[0]  # one of each alone
    assert some.shape == (3, *leaves[1].shape)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@every_layer
def test_vectorized_jacobians_and_hessians(name, strategy, device):
    ours, theirs = pair(name, 2, 3, device=device)
    x = padded(device=device, steps=3, batch=2, size=2)

    def output(layer):
        return lambda x: layer(x)[0]

    def loss(layer):
        return lambda x: layer(x)[0].square().sum()

    with without_cudnn():
        expected = functional.jacobian(output(theirs), x), functional.hessian(loss(theirs), x)
    found = (
        functional.jacobian(output(ours), x, vectorize=True, strategy=strategy),
        functional.hessian(loss(ours), x, vectorize=True, outer_jacobian_strategy=strategy),
    )
    assert_close(found, expected, gradient=True)


@every_layer
def test_a_vectorized_jacobian_is_differentiable(name, device):
    ours, theirs = pair(name, 2, 3, device=device)
    x = padded(device=device, steps=3, batch=2, size=2).requires_grad_()

    def penalty(layer, **options):
        jacobian = functional.jacobian(lambda x: layer(x)[0], x, create_graph=True, **options)
        return torch.autograd.grad(jacobian.square().sum(), [x, *layer.parameters()])

    with without_cudnn():
        expected = penalty(theirs)
    assert_close(penalty(ours, vectorize=True), expected, gradient=True)


@every_layer
def test_batched_gradients_of_a_recomputing_layer_with_a_schedule(name, device):
    layer = getattr(rnnkern, name)(5, 8, recompute=True, dtype=torch.float64, device=device)
    x = padded(device=device).requires_grad_()
    keywords = {"lengths": torch.tensor([3, 0, 6, 1]), "reset_mask": torch.rand(6, 4, device=device) < 0.3}
    y = layer(x, **keywords)[0]
    d_y = torch.stack(random_like([y, y]))
    found = torch.autograd.grad(y, x, d_y, is_grads_batched=True, retain_graph=True)[0]
    loop = [torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in d_y]
    assert_close(found, torch.stack(loop), gradient=True)
