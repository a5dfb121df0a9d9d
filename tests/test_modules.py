"""The layers are torch.nn's: same parameters, results, gradients and random streams; lengths and resets hold."""

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

import rnnkern
from comparison import (
    LAYERS,
    assert_close,
    assert_equal_to_torch,
    error,
    outputs_and_gradients,
    pair,
    pick,
    random_like,
    states,
    tensors_of,
    without_cudnn,
)
from rnnkern import reference

VARIANTS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True, "num_layers": 2},
    {"bidirectional": True, "bias": False},
]
CASES = [(name, variant) for name in LAYERS for variant in VARIANTS] + [
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "bias": False, "batch_first": True}),
]
every_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=lambda value: str(value).replace(" ", ""))
every_layer = pytest.mark.parametrize("name", LAYERS)
LENGTHS = [3, 0, 6, 1]


def padded(dtype=torch.float64, device="cpu", steps=6, batch=4, size=5, batch_first=False):
    generator = torch.Generator().manual_seed(11)
    shape = (batch, steps, size) if batch_first else (steps, batch, size)
    return torch.randn(shape, dtype=dtype, generator=generator).to(device)


def packed(dtype=torch.float64, device="cpu", lengths=(3, 6, 1, 4)):
    return pack_padded_sequence(padded(dtype, device), torch.tensor(lengths), enforce_sorted=False)


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


# --- lengths and resets -----------------------------------------------------------------------------------------------


def by_sample(theirs, x, hx, segments):
    """torch.nn on every sample's segments alone: outputs and final states; `segments[b]`: lists of steps."""
    directions = 2 if theirs.bidirectional else 1
    width = directions * (theirs.proj_size or theirs.hidden_size)
    outputs, finals = [], []
    for b, parts in enumerate(segments):
        y = torch.zeros(x.shape[0], width, dtype=x.dtype, device=x.device)
        state = pick(hx, slice(b, b + 1))
        forward_state, reverse_state = state, state
        for index, part in enumerate(parts):
            restarted = index > 0 or part[:1] == ["reset"]
            steps = [t for t in part if t != "reset"]
            zero = tuple(torch.zeros_like(h) for h in state) if isinstance(state, tuple) else torch.zeros_like(state)
            last = index == len(parts) - 1
            given = mixed(zero if restarted else state, state if last else zero, directions)
            if steps:
                out, after = theirs(x[steps, b : b + 1], given)
                y = y.index_copy(0, torch.tensor(steps, device=x.device), out[:, 0])
            else:
                after = given
            forward_state = after  # the last segment's
            if index == 0:
                reverse_state = after  # the first segment's
        outputs.append(y)
        finals.append(mixed(forward_state, reverse_state, directions))
    if not isinstance(hx, tuple):
        return torch.stack(outputs, 1), torch.cat(finals, 1)
    return torch.stack(outputs, 1), tuple(torch.cat(h, 1) for h in zip(*finals, strict=True))


def mixed(forward, reverse, directions):
    """Forward direction's rows of one state, the reverse direction's of another."""
    if isinstance(forward, tuple):
        return tuple(mixed(f, r, directions) for f, r in zip(forward, reverse, strict=True))
    if directions == 1:
        return forward
    return torch.stack([forward[d] if d % 2 == 0 else reverse[d] for d in range(forward.shape[0])])


ONE_LAYER = [
    ("LSTM", {}),
    ("LSTM", {"bidirectional": True, "proj_size": 3}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"bidirectional": True}),
]
every_direction = pytest.mark.parametrize(("name", "variant"), ONE_LAYER, ids=lambda value: str(value).replace(" ", ""))


@every_direction
def test_a_length_ends_a_sample_as_if_it_ran_alone(name, variant, device):
    ours, theirs = pair(name, 5, 8, **variant, device=device)
    x = padded(device=device).requires_grad_()
    hx = states(ours, 4, device=device)
    found = tensors_of(ours(x, hx, lengths=torch.tensor(LENGTHS)))
    expected = tensors_of(by_sample(theirs, x, hx, [[list(range(length))] if length else [[]] for length in LENGTHS]))
    assert_close(found, expected)
    leaves = [x, *tensors_of(hx)]
    gradients = torch.autograd.grad(found, leaves + list(ours.parameters()), random_like(found))
    theirs_gradients = torch.autograd.grad(expected, leaves + list(theirs.parameters()), random_like(expected))
    assert_close(gradients, theirs_gradients)


@every_layer
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_never_leaks(name, poison, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    lengths = torch.tensor(LENGTHS)
    past = (torch.arange(6)[:, None] >= lengths).to(device)
    clean = padded(device=device).masked_fill(past[..., None], 0.0)
    x = clean.masked_fill(past[..., None], poison).requires_grad_()
    found, gradients = outputs_and_gradients(
        ours, x, states(ours, 4, device=device), lengths=lengths, return_state_sequence=True
    )
    expected, expected_gradients = outputs_and_gradients(
        ours, clean.requires_grad_(), states(ours, 4, device=device), lengths=lengths, return_state_sequence=True
    )
    assert_close(found, expected)
    assert_close(gradients, expected_gradients)
    assert not found[0][past].any()
    assert not found[-1][:, past].any()
    assert not gradients[0][past].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_lengths_may_be_of_any_integer_dtype(dtype):
    ours, _ = pair("GRU", 5, 8)
    expected = ours(padded(), lengths=torch.tensor(LENGTHS))
    assert_close(ours(padded(), lengths=torch.tensor(LENGTHS, dtype=dtype)), expected)


@every_layer
def test_lengths_equal_the_packed_sequence(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    hx = states(ours, 4, device=device)
    lengths = torch.tensor([3, 6, 1, 4])
    output, state = ours(packed(device=device), hx)
    assert_close((pad_packed_sequence(output)[0], state), ours(padded(device=device), hx, lengths=lengths))


@every_layer
def test_batch_first_and_unbatched_input_take_their_own_lengths_and_masks(name):
    first, _ = pair(name, 5, 8, batch_first=True)
    plain, _ = pair(name, 5, 8)
    x, lengths = padded(), torch.tensor(LENGTHS)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    y, hx, sequence = plain(x, lengths=lengths, reset_mask=mask, return_state_sequence=True)
    found = first(x.transpose(0, 1), lengths=lengths, reset_mask=mask.t(), return_state_sequence=True)
    assert_close(found, (y.transpose(0, 1), hx, sequence.transpose(1, 2)))
    alone = plain(x[:, 0], lengths=lengths[0], reset_mask=mask[:, 0], return_state_sequence=True)
    assert_close(alone, (y[:, 0], pick(hx, 0), sequence[:, :, 0]))


RESETS = {
    "some": [[2, 3], [0, 4], [], [5]],
    "first step": [[0], [0], [0], [0]],
    "all": [list(range(6))] * 4,
    "none": [[], [], [], []],
}


@every_direction
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS.keys())
def test_a_reset_starts_a_segment_that_gives_what_it_gives_alone(name, variant, resets, device):
    ours, theirs = pair(name, 5, 8, **variant, device=device)
    x = padded(device=device).requires_grad_()
    hx = states(ours, 4, device=device)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    segments = []
    for b, starts in enumerate(resets):
        mask[starts, b] = True
        bounds = sorted({0, *starts, 6})
        parts = [list(range(start, stop)) for start, stop in zip(bounds, bounds[1:], strict=False)]
        segments.append([["reset", *parts[0]], *parts[1:]] if 0 in starts else parts)
    found = tensors_of(ours(x, hx, reset_mask=mask.to(device)))
    expected = tensors_of(by_sample(theirs, x, hx, segments))
    assert_close(found, expected)
    leaves = [x, *ours.parameters()]
    gradients = torch.autograd.grad(found, leaves, random_like(found))
    assert_close(gradients, torch.autograd.grad(expected, [x, *theirs.parameters()], random_like(expected)))


@every_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_survives_no_reset_in_any_layer(name, bidirectional):
    ours, _ = pair(name, 5, 8, 2, bidirectional=bidirectional)
    x = padded(batch=1)
    x[1] = float("nan")
    mask = torch.tensor([[False], [True], [True], [False], [False], [False]])
    y, _ = ours(x, reset_mask=mask)
    assert y[1].isnan().all()
    clean = x.clone()
    clean[1] = 0.0
    expected, _ = ours(clean, reset_mask=mask)
    keep = [0, 2, 3, 4, 5]
    assert_close(y[keep], expected[keep])


@every_layer
def test_a_packed_reset_mask_equals_the_padded_one(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    lengths = torch.tensor([3, 6, 1, 4])
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    mask = mask.to(device)
    packed_mask = pack_padded_sequence(mask, lengths, enforce_sorted=False)
    hx = states(ours, 4, device=device)
    output, state, sequence = ours(packed(device=device), hx, reset_mask=packed_mask, return_state_sequence=True)
    expected = ours(padded(device=device), hx, lengths=lengths, reset_mask=mask, return_state_sequence=True)
    padded_sequence = pad_packed_sequence(output._replace(data=sequence.movedim(0, 1)))[0].movedim(2, 0)
    assert_close((pad_packed_sequence(output)[0], state, padded_sequence), expected)


@every_layer
def test_rows_of_a_batch_do_not_see_each_other(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, dtype=torch.float32, device=device)
    x = padded(torch.float32, device)
    expected = ours(x)[0]
    poisoned = x.clone()
    poisoned[:, 1] = float("nan")
    poisoned[2, 3] = float("inf")
    y = ours(poisoned)[0]
    assert y[:, 1].isnan().all()
    assert error(y[:, [0, 2]], expected[:, [0, 2]]) <= reference.TOLERANCE["float32"]


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


@every_layer
def test_double_backward_and_eval_mode_backward(name, device):
    ours, theirs = pair(name, 5, 8, device=device)
    ours.eval()
    x = padded(device=device).requires_grad_()

    def second(module):
        with without_cudnn():
            outputs = tensors_of(module(x))
        (d_x,) = torch.autograd.grad(outputs, x, random_like(outputs), create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), [x, *module.parameters()])

    assert_close(second(ours), second(theirs), gradient=True)


def test_backward_twice_over_a_retained_graph_gives_the_same():
    ours, _ = pair("GRU", 5, 8, 2)
    x = padded().requires_grad_()
    y, _ = ours(x)
    once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(once, torch.autograd.grad(y.sum(), x)[0])


# --- compiled, exported, transformed ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Compiled code is counted per function, and every layer has the same forward."""
    yield
    torch._dynamo.reset()


@every_layer
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_layer_compiles_without_a_graph_break(name, dynamic):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    lengths = torch.tensor(LENGTHS)
    mask = torch.rand(6, 4) < 0.3
    for keywords in ({}, {"lengths": lengths, "reset_mask": mask, "return_state_sequence": True}):
        x = padded().requires_grad_()
        found, gradients = outputs_and_gradients(wrapped(compiled, ours), x, states(ours, 4), **keywords)
        expected, expected_gradients = outputs_and_gradients(ours, x, states(ours, 4), **keywords)
        assert_close(found, expected)
        assert_close(gradients, expected_gradients)


def wrapped(compiled, original):
    """A compiled call beside the parameters of what was compiled."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.original = original

        def forward(self, *arguments, **keywords):
            return compiled(*arguments, **keywords)

    return Wrapped()


def test_random_masks_and_step_compile():
    options = {"dropout": 0.5, "recurrent_dropout": 0.5, "weight_dropout": 0.5, "zoneout": 0.5}
    layer = rnnkern.LSTM(5, 8, 2, **options, dtype=torch.float64)
    y, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(padded())
    assert y.shape == (6, 4, 8)
    layer.eval()
    hx = states(layer, 4)
    stepped = torch.compile(layer.step, fullgraph=True, backend="aot_eager")(padded()[0], hx)
    assert_close(stepped, layer.step(padded()[0], hx))


def test_a_packed_sequence_compiles():
    ours, _ = pair("LSTM", 5, 8, 2, bidirectional=True)
    x = packed()

    def call(data, batch_sizes, sorted_indices, unsorted_indices):
        output, hx = ours(PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices))
        return output.data, hx

    assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(*x), call(*x))


@every_layer
def test_a_layer_exports(name):
    ours, _ = pair(name, 5, 8, 2)
    time = torch.export.Dim("time", min=2)
    program = torch.export.export(ours, (padded(),), dynamic_shapes={"input": {0: time}}, strict=False)
    longer = padded(steps=9)
    assert_close(program.module()(longer), ours(longer))


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


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_masks_under_vmap_are_those_that_were_asked_for(randomness):
    layer = rnnkern.GRU(5, 8, recurrent_dropout=0.5, zoneout=0.5, weight_dropout=0.5, dtype=torch.float64)
    first, second = torch.func.vmap(layer, randomness=randomness)(torch.stack([padded(), padded()]))[0]
    assert torch.equal(first, second) == (randomness == "same")


@every_layer
def test_fake_tensors_give_shapes(name):
    with FakeTensorMode():
        layer = getattr(rnnkern, name)(5, 8, 2, bidirectional=True)
        y, hx = layer(torch.empty(6, 4, 5))
    assert y.shape == (6, 4, 16) and all(state.shape == (4, 4, 8) for state in tensors_of(hx))


@every_layer
def test_threads_share_a_layer(name):
    layer, x = getattr(rnnkern, name)(5, 64), padded(torch.float32)
    expected = layer(x)[0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: layer(x)[0], range(16)))
    assert all(torch.equal(y, expected) for y in found)


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
