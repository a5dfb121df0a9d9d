"""Layers among the rest of torch: copied, pickled, parametrised, compiled, exported, transformed, shared by threads."""

import concurrent.futures
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.utils.flop_counter import FlopCounterMode

import rnnkern
from comparison import (
    LAYERS,
    assert_close,
    assert_equal_to_torch,
    pair,
    states,
    tensors_of,
)
from layer_inputs import every_layer, packed, padded

# --- module mechanics -------------------------------------------------------------------------------------------------


@every_layer
def test_copies_and_pickles_are_independent_and_equal(name):
    ours, _ = pair(name, 5, 8, 2)
    x = padded()
    expected = ours(x)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    for clone in copies:
        assert_close(clone(x), expected)
        named = zip(clone._flat_weights_names, clone._flat_weights, strict=True)
        assert all(getattr(clone, name) is weight for name, weight in named)


def test_a_pickle_without_the_later_keywords_loads():
    layer = rnnkern.LSTM(5, 8, zoneout=0.5)
    state = layer.__getstate__()
    for keyword in ("heads", "recompute", "recurrent_dropout", "weight_dropout", "zoneout", "forget_bias"):
        del state[keyword]
    loaded = rnnkern.LSTM.__new__(rnnkern.LSTM)
    loaded.__setstate__(state)
    assert repr(loaded) == "LSTM(5, 8)"
    x = padded(torch.float32)
    assert_close(loaded(x), nn.LSTM.forward(loaded.to_torch(), x), torch.float32)


@every_layer
def test_changed_parameters_always_take_effect(name):
    ours, theirs = pair(name, 5, 8)
    x = padded()

    def check():
        theirs.load_state_dict(ours.state_dict())
        assert_close(ours(x), theirs(x))
        with torch.no_grad():
            assert_close(ours.step(x[0]), (theirs(x[:1])[0][0], theirs(x[:1])[1]))

    check()
    ours.weight_hh_l0.data.mul_(0.5)
    check()
    ours.bias_ih_l0.data[2:5] = 1.0
    check()
    with torch.no_grad():
        ours.weight_ih_l0[0] = 2.0
    check()
    ours.weight_ih_l0.data = torch.randn_like(ours.weight_ih_l0)
    check()
    ours.weight_hh_l0 = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    check()
    fresh = {key: torch.randn_like(value) for key, value in ours.state_dict().items()}
    ours.load_state_dict(fresh, assign=True)
    check()
    ours.load_state_dict({"bias_ih_l0": torch.zeros_like(ours.bias_ih_l0)}, strict=False)
    check()
    moved = ours.bias_hh_l0
    del ours.bias_hh_l0
    ours.register_parameter("bias_hh_l0", nn.Parameter(moved.detach() * 3))
    check()


@every_layer
def test_functional_call_parametrisations_and_tied_weights(name):
    ours, theirs = pair(name, 8, 8)
    x = padded(size=8)
    weights = {key: torch.randn_like(value).requires_grad_() for key, value in ours.named_parameters()}
    found = torch.func.functional_call(ours, weights, (x,))
    expected = torch.func.functional_call(theirs, weights, (x,))
    assert_close(found, expected)
    assert_close(
        torch.autograd.grad(found[0].sum(), weights.values()), torch.autograd.grad(expected[0].sum(), weights.values())
    )

    ours.weight_ih_l0 = ours.weight_hh_l0
    theirs.weight_ih_l0 = theirs.weight_hh_l0
    assert_equal_to_torch(ours, theirs, x)

    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    for module in (ours, theirs):
        parametrize.register_parametrization(module, "weight_hh_l0", Half())
    assert_equal_to_torch(ours, theirs, x)
    with torch.no_grad():
        assert_close(ours.step(x[0]), (theirs(x[:1])[0][0], theirs(x[:1])[1]))


@every_layer
def test_old_weight_norm_and_its_removal(name):
    ours, theirs = pair(name, 5, 8)
    for module in (ours, theirs):
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(module, "weight_hh_l0")
    x = padded()
    assert_equal_to_torch(ours, theirs, x)
    for module in (ours, theirs):
        nn.utils.remove_weight_norm(module, "weight_hh_l0")
    assert_equal_to_torch(ours, theirs, x)


@every_layer
def test_moves_between_dtypes_and_devices(name):
    layer = getattr(rnnkern, name)(5, 8, 2, device="meta")
    y, hx = layer(torch.empty(6, 4, 5, device="meta"))
    assert y.is_meta and y.shape == (6, 4, 8) and all(s.shape == (2, 4, 8) for s in tensors_of(hx))
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.double()(padded())[0].dtype == torch.float64


# --- compiled, exported, transformed ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Compiled code is counted per function, and every layer has the same forward."""
    yield
    torch._dynamo.reset()


def test_a_packed_sequence_compiles():
    ours, _ = pair("LSTM", 5, 8, 2, bidirectional=True)
    x = packed()

    def call(data, batch_sizes, sorted_indices, unsorted_indices):
        output, hx = ours(PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices))
        return output.data, hx

    assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(*x), call(*x))


@every_layer
def test_vmap_over_inputs_and_over_stacked_weights(name):
    layers = [getattr(rnnkern, name)(5, 8, bidirectional=True, dtype=torch.float64) for _ in range(3)]
    inputs = torch.stack([padded(), padded() * 2, padded() - 1])
    expected = [layers[0](x) for x in inputs]
    found = torch.func.vmap(layers[0])(inputs)
    assert_close(found, torch.utils._pytree.tree_map(lambda *tensors: torch.stack(tensors), *expected))

    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters, buffers, x):
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,))

    expected = [layer(padded()) for layer in layers]
    found = torch.func.vmap(call, (0, 0, None))(parameters, buffers, padded())
    assert_close(found, torch.utils._pytree.tree_map(lambda *tensors: torch.stack(tensors), *expected))


@every_layer
def test_fake_tensors_give_shapes(name):
    with FakeTensorMode():
        layer = getattr(rnnkern, name)(5, 8, 2, bidirectional=True)
        y, hx = layer(torch.empty(6, 4, 5))
    assert y.shape == (6, 4, 16) and all(state.shape == (4, 4, 8) for state in tensors_of(hx))


@pytest.mark.parametrize("of_x", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("name", "keywords"), [("GRU", {}), ("RNN", {"num_layers": 2, "bidirectional": True}), ("LSTM", {"proj_size": 3})]
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_operations_are_counted_as_torchs(name, keywords, given, of_x):
    ours, theirs = pair(name, 5, 8, **keywords)
    x, hx = padded().requires_grad_(of_x), states(ours, 4) if given else None

    def counted(layer):
        with FlopCounterMode(display=False) as counter:
            layer(x, hx)[0].sum().backward()
        return counter.get_total_flops()

    assert counted(ours) == counted(theirs) > 0


@every_layer
def test_threads_share_a_layer(name):
    layer, x = getattr(rnnkern, name)(5, 64), padded(torch.float32)
    expected = layer(x)[0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: layer(x)[0], range(16)))
    assert all(torch.equal(y, expected) for y in found)


class Marked(torch.Tensor):
    """A subclass as libraries derive them to say what a tensor holds."""


@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"])
def test_a_subclass_of_tensor_stays_one_and_trains(name):
    ours, theirs = pair(name, 5, 8)
    x = padded()[0] if name.endswith("Cell") else padded()
    found, expected = tensors_of(ours(x.as_subclass(Marked))), tensors_of(theirs(x))
    assert all(type(tensor) is Marked for tensor in found)
    states = len(found) - name.startswith("LSTM") - 1  # the final ones
    found[states:] = [tensor.relu_() for tensor in found[states:]]
    expected[states:] = [tensor.relu() for tensor in expected[states:]]
    assert_close([tensor.as_subclass(torch.Tensor) for tensor in found], expected)
    found = torch.autograd.grad(sum(tensor.sum() for tensor in found), list(ours.parameters()))
    expected = torch.autograd.grad(sum(tensor.sum() for tensor in expected), list(theirs.parameters()))
    assert_close(list(found), list(expected), gradient=True)
    with torch.no_grad():
        assert type(tensors_of(ours(x.as_subclass(Marked)))[0]) is Marked


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_wrapper_of_tensors_has_the_results_shapes(name, gradient):
    cell = pair(name, 5, 8)[0].requires_grad_(gradient)
    for x in (padded()[0], padded()[0, 0]):
        wrapped = [tensor.elem for tensor in tensors_of(cell(LoggingTensor(x)))]
        assert_close(wrapped, tensors_of(cell(x)))
        assert [tensor.shape for tensor in tensors_of(cell(LoggingTensor(x)))] == [tensor.shape for tensor in wrapped]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"])
def test_forward_mode_needs_no_reverse_mode(name, frozen):
    """Of a frozen module, or under no_grad, nothing is kept for backward."""
    ours, theirs = pair(name, 5, 8)
    ours.requires_grad_(not frozen)
    cell = name.endswith("Cell")
    x = padded()[0] if cell else padded()
    tangent = torch.randn_like(x)
    calls = [(ours, theirs, x, tangent)]
    if not cell:
        calls.append((ours.step, lambda x: theirs(x.unsqueeze(0)), x[0], tangent[0]))
    for call, like, x, tangent in calls:
        _, expected = torch.autograd.functional.jvp(lambda x, like=like: tuple(tensors_of(like(x))), x, tangent)
        with torch.set_grad_enabled(frozen):
            _, found = torch.func.jvp(lambda x, call=call: tuple(tensors_of(call(x))), (x,), (tangent,))
        assert_close([t.reshape(e.shape) for t, e in zip(found, expected, strict=True)], expected, gradient=True)


@every_layer
def test_grad_and_jvp_of_torch_func(name):
    ours, theirs = pair(name, 5, 8)
    x = padded()
    gradient = torch.func.grad(lambda x: ours(x)[0].square().sum())(x)
    leaf = x.clone().requires_grad_()
    assert_close(gradient, torch.autograd.grad(theirs(leaf)[0].square().sum(), leaf)[0], gradient=True)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    _, expected = torch.autograd.functional.jvp(lambda x: theirs(x)[0], x, tangent)
    assert_close(found, expected, gradient=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@every_layer
@pytest.mark.parametrize("in_order", [True, False])
def test_a_trace_of_a_packed_sequence_takes_other_sizes(name, in_order):
    class Model(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, lengths):
            y, hx = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=in_order))
            return pad_packed_sequence(y)[0], hx

    ours, theirs = (Model(layer) for layer in pair(name, 5, 8, 2, bidirectional=True))
    traced = torch.jit.trace(ours, (padded(), torch.tensor([6, 4, 3, 1])), check_trace=False)
    x, lengths = padded(steps=9, batch=3), torch.tensor([9, 2, 2])
    assert_close(tensors_of(traced(x, lengths)), tensors_of(theirs(x, lengths)))


@every_layer
def test_a_trace_with_gradients_can_be_saved_and_trained(name):
    traces = []
    for layer in pair(name, 5, 8):
        stored = io.BytesIO()
        torch.jit.save(torch.jit.trace(layer, (padded(),)), stored)
        stored.seek(0)
        traces.append(torch.jit.load(stored))
    ours, theirs = traces
    x = padded(steps=9, batch=3)
    found, expected = tensors_of(ours(x)), tensors_of(theirs(x))
    assert_close(found, expected)
    found = torch.autograd.grad(found[0].square().sum(), list(ours.parameters()))
    expected = torch.autograd.grad(expected[0].square().sum(), list(theirs.parameters()))
    assert_close(list(found), list(expected), gradient=True)
