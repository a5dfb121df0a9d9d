"""The layers are torch.nn's: same parameters, results, gradients and random streams."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkern
from comparison import (
    assert_close,
    assert_equal_to_torch,
    outputs_and_gradients,
    pair,
    pick,
    random_like,
    states,
    tensors_of,
)
from layer_inputs import every_case, every_layer, make, packed, padded

# --- equal to torch.nn ------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed"])
def test_outputs_and_gradients_equal_torchs(name, variant, dtype, kind, device):
    ours, theirs = pair(name, 5, 8, **variant, dtype=dtype, device=device)
    if kind == "packed":
        x, batch = packed(dtype, device), 4
        x.data.requires_grad_()
    elif kind == "unbatched":
        x, batch = padded(dtype, device)[:, 0].clone().requires_grad_(), None
    else:
        x, batch = padded(dtype, device, batch_first=ours.batch_first).requires_grad_(), 4
    assert_equal_to_torch(ours, theirs, x, dtype=dtype)
    assert_equal_to_torch(ours, theirs, x, states(ours, batch, dtype, device), dtype=dtype)


@every_case
def test_parameters_repr_and_state_dict_are_torchs(name, variant):
    torch.manual_seed(1)
    ours = getattr(rnnkern, name)(5, 8, **variant)
    after = torch.rand(1)
    torch.manual_seed(1)
    theirs = getattr(nn, name)(5, 8, **variant)
    assert torch.equal(after, torch.rand(1))  # the constructor draws as much
    assert repr(ours) == repr(theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert ours._all_weights == theirs._all_weights
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(2)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(3)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.flatten_parameters()
    for attribute in ("input_size", "hidden_size", "num_layers", "bidirectional", "proj_size", "dropout", "mode"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_dropout_between_layers_draws_torchs_masks(name, batch_first, kind):
    ours, theirs = pair(name, 5, 8, 3, dropout=0.4, batch_first=batch_first, bidirectional=True)
    x = packed() if kind == "packed" else padded(batch_first=batch_first)
    torch.manual_seed(5)
    expected = theirs(x)
    torch.manual_seed(5)
    found = ours(x)
    assert_close(found, expected)
    ours.eval()
    assert_close(ours(x), theirs.eval()(x))


@every_layer
def test_positional_arguments_are_torchs(name):
    arguments = (5, 8, 2, "relu", False, True, 0.5, True) if name == "RNN" else (5, 8, 2, False, True, 0.5, True)
    assert repr(getattr(rnnkern, name)(*arguments)) == repr(getattr(nn, name)(*arguments))


@every_layer
def test_a_list_of_states_and_none_are_accepted(name, device):
    ours, _ = pair(name, 5, 8, device=device)
    x = padded(device=device)
    hx = states(ours, 4, device=device)
    if name == "LSTM":
        assert_close(ours(x, list(hx)), ours(x, hx))
    assert_close(ours(x, None), ours(x))


@every_layer
def test_strided_expanded_and_offset_tensors_are_accepted(name):
    ours, _ = pair(name, 5, 8)
    x, hx = padded(), states(ours, 4, requires_grad=False)

    def strided(tensor):
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype)
        view = wide[..., 1::2]
        view.copy_(tensor)
        return view

    expected = ours(x, hx)
    awkward = tuple(map(strided, hx)) if name == "LSTM" else strided(hx)
    assert_close(ours(strided(x), awkward), expected)
    assert_close(ours(x.transpose(0, 2).contiguous().transpose(0, 2), hx), expected)
    first = pick(hx, slice(0, 1))
    expanded = tuple(h.expand(-1, 4, -1) for h in first) if name == "LSTM" else first.expand(-1, 4, -1)
    dense = tuple(h.contiguous() for h in expanded) if name == "LSTM" else expanded.contiguous()
    same = x[:, :1].expand(-1, 4, -1)
    assert_close(ours(same, expanded), ours(same.contiguous(), dense))
    for parameter_name, parameter in list(ours.named_parameters()):
        setattr(ours, parameter_name, nn.Parameter(strided(parameter.detach())))
    assert_close(ours(x, hx), expected)
    outputs_and_gradients(ours, x.clone().requires_grad_(), hx)


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_and_an_empty_time_axis(name, batch_first):
    layer = getattr(rnnkern, name)(5, 8, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    y, hx = layer(padded(batch=0, batch_first=batch_first).requires_grad_())
    assert y.shape == ((0, 6, 16) if batch_first else (6, 0, 16))
    assert all(state.shape == (4, 0, 8) for state in tensors_of(hx))
    y.sum().backward()
    assert all(not parameter.grad.any() for parameter in layer.parameters())

    hx = states(layer, 4)
    y, after, sequence = layer(padded(steps=0, batch_first=batch_first), hx, return_state_sequence=True)
    assert y.shape == ((4, 0, 16) if batch_first else (0, 4, 16))
    assert sequence.shape == ((4, 4, 0, 8) if batch_first else (4, 0, 4, 8))
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(after), tensors_of(hx), strict=True))
    sum(state.sum() for state in tensors_of(after)).backward()
    assert all(torch.equal(state.grad, torch.ones_like(state)) for state in tensors_of(hx))
    unbatched, _ = layer(torch.zeros(0, 5, dtype=torch.float64))
    assert unbatched.shape == (0, 16)


@every_layer
def test_a_packed_sequence_made_by_hand_has_no_indices(name, device):
    ours, theirs = pair(name, 5, 8, bidirectional=True, device=device)
    whole = pack_padded_sequence(padded(device=device), [6, 4, 3, 1])
    by_hand = PackedSequence(whole.data, whole.batch_sizes)
    assert by_hand.sorted_indices is None
    for hx in (None, states(ours, 4, device=device)):
        output, _ = ours(by_hand, hx)
        assert isinstance(output, PackedSequence)
        assert_close(ours(by_hand, hx), theirs(by_hand, hx))


# --- dtypes, autocast -------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_results_are_within_the_tolerance_table(name, dtype, device):
    ours, _ = pair(name, 5, 8, bidirectional=True, dtype=dtype, device=device)
    theirs = copy.deepcopy(ours).double().to_torch()
    x = padded(dtype, device).requires_grad_()
    assert_equal_to_torch(ours, theirs, x, states(ours, 4, dtype, device), dtype=dtype)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_results_have_its_dtype_and_gradients_the_parameters(name, dtype, device):
    ours, _ = pair(name, 5, 8, 2, dtype=torch.float32, device=device)
    x = padded(torch.float32, device).requires_grad_()
    hx = states(ours, 4, torch.float32, device)
    with torch.autocast(device, dtype):
        found = ours(x, hx)
    low = copy.deepcopy(ours).to(dtype)
    expected = low(x.to(dtype), tuple(h.to(dtype) for h in hx) if name == "LSTM" else hx.to(dtype))
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(found), tensors_of(expected), strict=True))
    outputs = tensors_of(found)
    leaves = [x, *tensors_of(hx), *ours.parameters()]
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(outputs, leaves, random_like(outputs)))
    with torch.autocast(device, dtype):
        assert tensors_of(ours.double()(x.double()))[0].dtype == torch.float64  # as torch: double stays double


# --- the way back, and functions --------------------------------------------------------------------------------------


@every_case
def test_to_torch_shares_parameters_and_mode(name, variant):
    ours, _ = pair(name, 5, 8, **variant)
    ours.eval()
    back = ours.to_torch()
    assert type(back) is getattr(nn, name)
    assert not back.training
    assert all(one is other for one, other in zip(ours.parameters(), back.parameters(), strict=True))
    assert vars(back).keys() == vars(getattr(nn, name)(5, 8, **variant)).keys()
    x = padded(batch_first=ours.batch_first)
    assert_close(ours(x), back(x))
    back.register_forward_hook(lambda *_: None)
    assert not ours._forward_hooks


@every_case
def test_the_functions_are_the_modules(name, variant):
    ours, _ = pair(name, 5, 8, **variant)
    x = padded(batch_first=ours.batch_first)
    keywords = {key: value for key, value in variant.items() if key not in ("bias", "proj_size")}
    function = getattr(rnnkern.functional, name.lower())
    hx = states(ours, 4)
    assert_close(function(x, hx, list(ours.parameters()), **keywords), ours(x, hx))
    keywords["batch_first"] = False
    assert_close(function(packed(), None, list(ours.parameters()), **keywords), ours(packed()))


@every_layer
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"zoneout": 0.3}, {"heads": 2}, {"recompute": True}],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_functions_take_the_options_of_the_modules(name, options, training):
    layer, x = make(name, 5, 8, 2, **options).train(training), padded()
    given = {"lengths": torch.tensor([6, 3, 0, 1]), "reset_mask": torch.rand(6, 4) < 0.3}
    given["return_state_sequence"] = True
    function = getattr(rnnkern.functional, name.lower())
    torch.manual_seed(9)
    expected = layer(x, **given)
    torch.manual_seed(9)
    assert_close(function(x, None, layer.parameters(), num_layers=2, training=training, **options, **given),
                 expected)  # fmt: skip


def test_the_function_of_a_gru_takes_its_reset_gates_place():
    layer, x = make("GRU", 5, 8, reset_after=False), padded()
    assert_close(rnnkern.functional.gru(x, None, list(layer.parameters()), reset_after=False), layer(x))


def test_every_tensor_of_a_function_may_require_a_gradient():
    ours, _ = pair("LSTM", 3, 4, 2)
    x = padded(steps=3, batch=2, size=3).requires_grad_()
    h, c = states(ours, 2)
    weights = [weight.detach().requires_grad_() for weight in ours.parameters()]

    def function(x, h, c, *weights):
        y, (h_n, c_n), cells = rnnkern.functional.lstm(
            x, (h, c), weights, num_layers=2, lengths=torch.tensor([3, 1]), return_state_sequence=True
        )
        return y, h_n, c_n, cells

    assert torch.autograd.gradcheck(function, (x, h, c, *weights), fast_mode=True)


@every_layer
def test_a_forward_written_like_torchs_finds_its_methods(name):
    class Own(getattr(rnnkern, name)):
        def forward(self, input, hx):
            order = torch.tensor([1, 0])
            self.check_forward_args(input, hx, None)
            return super().forward(input, self.permute_hidden(hx, order))

    layer = Own(5, 8, dtype=torch.float64)
    x, hx = padded(batch=2), states(layer, 2)
    swapped = tuple(h.flip(1) for h in hx) if name == "LSTM" else hx.flip(1)
    assert_close(layer(x, hx), getattr(rnnkern, name).forward(layer, x, swapped))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        layer(x[:, :1], hx)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_heads_are_split_whatever_a_subclass_does_to_reset_parameters(name):
    class Own(getattr(rnnkern, name)):
        def reset_parameters(self):
            for parameter in self.parameters():
                torch.nn.init.constant_(parameter, 0.25)

    layer = Own(6, 8, heads=2, bidirectional=True)
    assert layer(torch.randn(5, 3, 6))[0].shape == (5, 3, 16)
    assert layer.weight_hh_l0.shape[1] == 4
    assert all((parameter == 0.25).all() for parameter in layer.parameters())
