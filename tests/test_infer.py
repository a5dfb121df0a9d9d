"""Calls without gradients go to the kernels past autograd and the dispatcher: with the same bits, and only where nobody
would notice."""

import copy

import pytest
import torch

import rnnkern
from comparison import assert_close, pair, states, tensors_of
from helpers import OperatorCalls
from layer_inputs import every_case, every_layer, padded
from rnnkern.direct import infer


@every_case
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_the_operator(name, variant, given, dtype, direct, device):
    layer = pair(name, 5, 8, **variant)[0].to(device, dtype)
    x = padded(dtype, device, batch_first=layer.batch_first)
    hx = states(layer, 4, dtype, device, requires_grad=False) if given else None
    with torch.no_grad():
        with OperatorCalls() as operators:
            expected = tensors_of(layer(x, hx))
        direct()
        found = tensors_of(layer(x, hx))
    assert operators.names == ["layer_forward"] * layer.num_layers
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [one.stride() for one in found] == [other.stride() for other in expected]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_one_step_are_those_of_the_operator(name, bias, batched, given, dtype, direct, device):
    is_cell, batch = name.endswith("Cell"), [4] if batched else []
    layers = () if is_cell else (2,)
    module = getattr(rnnkern, name)(5, 8, *layers, bias=bias, dtype=dtype, device=device)
    call = module if is_cell else module.step
    h, c = torch.randn(2, *layers, *batch, 8, dtype=dtype, device=device)
    x, hx = torch.randn(*batch, 5, dtype=dtype, device=device), (h, c) if name.startswith("LSTM") else h
    arguments = (x, hx) if given else (x,)
    with torch.no_grad():
        with OperatorCalls() as operators:
            expected = tensors_of(call(*arguments))
        direct()
        found = tensors_of(call(*arguments))
    assert operators.names == ["layer_forward"] * sum(layers or (1,))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [(one.shape, one.stride()) for one in found] == [(other.shape, other.stride()) for other in expected]
    found[0].add_(1)  # no result shares another's memory
    assert all(torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True))


@every_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_what_is_not_a_plain_call_goes_the_long_way(name):
    layer = pair(name, 5, 8)[0]
    x = padded()
    expected, step = layer(x)[0].detach(), layer.step(x[0])[0].detach()
    with torch.no_grad():
        negative = torch._neg_view(-x)  # what lies in memory is -x
        assert torch.equal(layer(negative)[0], expected)
        assert torch.equal(layer.step(negative[0])[0], step)
        zeros = torch._efficientzerotensor(x.shape, dtype=x.dtype)  # which has no memory
        assert torch.equal(layer(zeros)[0], layer(torch.zeros_like(x))[0])
        layer.weight_hh_l0 = torch.nn.Parameter(torch._neg_view(-layer.weight_hh_l0.detach()))
        assert torch.equal(layer(x)[0], expected)
        traced = torch.jit.trace(layer, (x,))
        assert torch.equal(traced(x * 2)[0], layer(x * 2)[0])


def test_bits_of_a_cell_are_the_same_for_every_number_of_threads(threads):
    """Its output and its new state lie in the same memory."""
    cell, x, hx = rnnkern.LSTMCell(512, 512), torch.randn(4, 512), tuple(torch.randn(2, 4, 512))
    with torch.no_grad():
        threads(1)
        alone = cell(x, hx)
        threads(2)
        assert all(torch.equal(one, other) for one, other in zip(cell(x, hx), alone, strict=True))


@every_layer
def test_a_cell_that_is_no_plain_call_goes_the_long_way(name):
    cell = getattr(rnnkern, name + "Cell")(5, 8, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = tensors_of(cell(x))
    assert all(state.requires_grad for state in expected)
    with torch.no_grad(), pytest.raises((AttributeError, TypeError)):  # no sequence, and none is taken from it
        cell(x, (state for state in expected))
    with torch.no_grad():
        negative = tensors_of(cell(torch._neg_view(-x)))
        assert all(torch.equal(one, other) for one, other in zip(negative, expected, strict=True))
        batched = torch.func.vmap(cell)(torch.stack([x, x]))
        assert_close(tensors_of(batched), [torch.stack([state, state]) for state in expected])
        with torch.autocast("cpu", torch.bfloat16):
            assert tensors_of(copy.deepcopy(cell).float()(x.float()))[0].dtype == torch.bfloat16
        torch.nn.utils.parametrize.register_parametrization(cell, "weight_hh", torch.nn.Identity())
        assert_close(tensors_of(cell(x)), expected)


class Unreadable:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise RuntimeError("not to be read")


@pytest.mark.parametrize(
    "weights", [torch.tensor(0.0), Unreadable(), 5, [None] * 4], ids=["scalar", "unreadable", "int", "none"]
)
def test_what_holds_no_weights_goes_the_long_way(weights):
    with torch.no_grad():
        assert infer("gru", torch.randn(3, 2, 5), None, weights, 1, False, False, 1, 0.0) is None


def test_profilers_see_it():
    layer = rnnkern.GRU(5, 8)
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(torch.randn(3, 2, 5))
    assert "rnnkern::infer" in {event.name for event in profile.events()}


def test_profilers_see_operators_and_their_shapes():
    layer, x = rnnkern.LSTM(5, 8), torch.randn(3, 4, 5)
    with torch.profiler.profile(record_shapes=True) as profile:
        layer(x)[0].sum().backward()
    shapes = {event.name: event.input_shapes for event in profile.events()}
    assert shapes["rnnkern::layer_forward"][0] == [3, 4, 5] and shapes["rnnkern::layer_backward"][0] == [3, 4, 8]


def that_left_its_transform(tensor):
    """Equal, and still wrapped as a transform of `torch.func` that is over wrapped it."""
    left = []
    torch.func.grad(lambda t: left.append(t) or t.sum())(tensor)
    return left[0]


@pytest.mark.parametrize("make", [rnnkern.LSTM, rnnkern.GRUCell])
def test_a_tensor_that_left_its_transform_is_taken(make):
    module, x = make(5, 8), torch.randn(*([3] if make is rnnkern.LSTM else []), 4, 5)
    with torch.no_grad():
        assert_close(module(that_left_its_transform(x)), module(x), torch.float32)
    result = tensors_of(module(x))[0]
    found, expected = (
        torch.autograd.grad(result, list(module.parameters()), incoming, retain_graph=True)
        for incoming in (that_left_its_transform(torch.ones_like(result)), torch.ones_like(result))
    )
    assert_close(found, expected, torch.float32, gradient=True)
