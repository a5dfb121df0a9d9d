"""`step`: one time step of a stream, equal to `forward` on a sequence of length one."""

import copy

import pytest
import torch
from torch.nn.utils import prune

import rnnkern
from comparison import assert_close, random_like, states, tensors_of
from layer_inputs import every_layer, make, padded

X = padded()

STEPPED = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "proj_size": 3}),
    ("LSTM", {"num_layers": 2, "bias": False, "zoneout": 0.25, "heads": 2}),
    ("GRU", {"num_layers": 2, "batch_first": True}),
    ("GRU", {"reset_after": False, "heads": 4}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"nonlinearity": "sigmoid", "zoneout": 0.5}),
]
every_stepped = pytest.mark.parametrize(("name", "options"), STEPPED, ids=str)


def at_step(layer, t, batched=True):
    """The input of one step, and the same as a sequence of length one."""
    x = X[t] if batched else X[t, 0]
    return x, x.unsqueeze(1 if batched and layer.batch_first else 0)


@every_stepped
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_steps_equal_forward_on_one_step(name, options, batched, gradients, device):
    layer = make(name, 5, 8, **options).eval().to(device)
    hx = forward_hx = None
    with torch.set_grad_enabled(gradients):
        for t in range(3):
            x, sequence = (value.to(device) for value in at_step(layer, t, batched))
            y, hx = layer.step(x, hx)
            expected, forward_hx = layer(sequence, forward_hx)
            assert_close(y, expected.reshape(y.shape))
            assert_close(hx, forward_hx)
    assert y.requires_grad == gradients
    if gradients:
        outputs, expected = tensors_of((y, hx)), tensors_of((expected.reshape(y.shape), forward_hx))
        weights, incoming = list(layer.parameters()), random_like(outputs)
        found = torch.autograd.grad(outputs, weights, incoming)
        assert_close(found, torch.autograd.grad(expected, weights, incoming))


@every_layer
def test_steps_in_training_draw_forwards_masks(name):
    options = {"dropout": 0.5, "recurrent_dropout": 0.5, "weight_dropout": 0.5, "zoneout": 0.5}
    layer = make(name, 5, 8, 2, **options)
    hx = states(layer, 4, requires_grad=False)
    with torch.no_grad():
        torch.manual_seed(4)
        y, after = layer.step(X[0], hx)
        torch.manual_seed(4)
        expected, expected_after = layer(X[:1], hx)
    assert_close((y, after), (expected[0], expected_after))


@every_layer
@pytest.mark.parametrize("gradients", [True, False])
def test_steps_evaluate_parametrisations_as_forward_does(name, gradients):
    layer = make(name, 5, 8)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", torch.nn.Dropout(0.5))
    hx = states(layer, 4, requires_grad=False)
    with torch.set_grad_enabled(gradients):
        torch.manual_seed(4)
        y, after = layer.step(X[0], hx)
        torch.manual_seed(4)
        expected, expected_after = layer(X[:1], hx)
    assert_close((y, after), (expected[0], expected_after))


@every_layer
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("reparametrise", [
    lambda layer: prune.l1_unstructured(layer, "weight_hh_l0", 0.5),
    lambda layer: torch.nn.utils.weight_norm(layer, "weight_hh_l0"),
], ids=["pruned", "weight_norm"])  # fmt: skip
def test_steps_run_the_hooks_that_make_a_weight(name, reparametrise):
    layer, other = make(name, 5, 8), make(name, 5, 8)
    reparametrise(layer)
    reparametrise(other)
    hx = states(layer, 4, requires_grad=False)
    with torch.no_grad():
        for one in (layer, other):
            for parameter in one.parameters():
                parameter.mul_(1.5)
        y, after = layer.step(X[0], hx)
        expected, expected_after = other(X[:1], hx)
    assert_close((y, after), (expected[0], expected_after))


@every_layer
def test_results_of_a_step_can_be_changed_in_place(name):
    layer = make(name, 5, 8)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y, hx = layer.step(X[0])
            expected = y.clone()
            for state in tensors_of(hx):
                state.relu_()
            assert torch.equal(y, expected)
            y.relu_()
        if gradients:
            y.sum().backward()
            found = layer.weight_ih_l0.grad
            layer.weight_ih_l0.grad = None
            layer(X[:1])[0].relu().sum().backward()
            assert_close(found, layer.weight_ih_l0.grad)


@every_layer
def test_steps_call_hooks_and_follow_transforms_and_autocast(name):
    layer = make(name, 5, 8)
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        layer.step(X[0])
        assert seen == [1]
        handle.remove()
        layer.step(X[0])
        assert seen == [1]
        with layer.register_forward_pre_hook(lambda *_: seen.append(2)):
            layer.step(X[0])
        with torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(3)):
            layer.step(X[0])
        assert seen == [1, 2, 3]
        inputs = torch.stack([X[0], X[1]])
        found = torch.func.vmap(lambda x: layer.step(x)[0])(inputs)
        assert_close(found, torch.stack([layer.step(x)[0] for x in inputs]))
        single = copy.deepcopy(layer).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert single.step(X[0].float())[0].dtype == torch.bfloat16
    tangent = torch.func.jvp(lambda x: layer.step(x)[0], (X[0],), (X[1],))[1]
    assert_close(tangent, torch.func.jvp(lambda x: layer(x[None])[0][0], (X[0],), (X[1],))[1])


@pytest.mark.parametrize("gradients", [True, False])
def test_a_step_runs_a_forward_of_its_own(gradients):
    class Doubled(rnnkern.GRU):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    layer = Doubled(5, 8, dtype=torch.float64)
    replaced = make("LSTM", 5, 8)
    replaced.forward = lambda input, hx=None: rnnkern.LSTM.forward(replaced, 2 * input, hx)
    borrower = make("LSTM", 5, 8)
    borrower.forward = make("LSTM", 5, 8).forward  # the very method, of a layer with other weights
    with torch.set_grad_enabled(gradients):
        for one in (layer, replaced, borrower):
            assert_close(one.step(X[0])[0], one(X[:1])[0][0])


@every_layer
def test_steps_take_strided_input_and_an_empty_batch(name):
    layer = make(name, 5, 8)
    hx = states(layer, 4, requires_grad=False)
    wide = torch.zeros(4, 11, dtype=torch.float64)
    wide[:, 1::2] = X[0]
    with torch.no_grad():
        assert_close(layer.step(wide[:, 1::2], hx), layer.step(X[0], hx))
        y, after = layer.step(X[0, :0])
    assert y.shape == (0, 8) and all(state.shape == (1, 0, 8) for state in tensors_of(after))
