"""What the layers can do beyond torch.nn's: heads, random masks, zoneout, recompute, state sequences."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkern
from comparison import assert_close, outputs_and_gradients, pair, random_like, states, tensors_of
from layer_inputs import every_layer, make
from rnnkern import autograd, reference

X = torch.randn(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """Every call of a layer's operator, as keywords and positions, with its results."""
    seen = []
    original = autograd.layer

    def layer(*arguments, **keywords):
        results = original(*arguments, **keywords)
        seen.append((arguments, keywords, results))
        return results

    monkeypatch.setattr(autograd, "layer", layer)
    return seen


def assert_calls_are_the_reference(calls):
    for arguments, keywords, results in calls:
        options = {key: value for key, value in keywords.items() if key not in ("recompute", "want_cells")}
        expected = reference.layer(*arguments, **options)
        assert_close(results[:2], expected[:2])


# --- heads ------------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("heads", [2, 4, 8])
def test_heads_equal_a_dense_layer_with_a_block_diagonal_weight(name, heads, device):
    layer = make(name, 5, 8, 2, bidirectional=True, heads=heads)
    dense = getattr(nn, name)(5, 8, 2, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for key, weight in layer.named_parameters():
            target = getattr(dense, key)
            if key.startswith("weight_hh"):
                assert weight.shape == (target.shape[0], 8 // heads)
                target.zero_()
                for row in range(target.shape[0]):
                    head = row % 8 // (8 // heads)
                    target[row, head * 8 // heads : (head + 1) * 8 // heads] = weight[row]
            else:
                target.copy_(weight)
    layer, dense = layer.to(device), dense.to(device)
    hx = states(layer, 4, device=device)
    x = X.to(device, copy=True).requires_grad_()
    found, expected = tensors_of(layer(x, hx)), tensors_of(dense(x, hx))
    assert_close(found, expected)
    leaves = [x, *tensors_of(hx), layer.weight_ih_l0, layer.bias_hh_l0]
    others = [x, *tensors_of(hx), dense.weight_ih_l0, dense.bias_hh_l0]
    incoming = random_like(found)
    assert_close(torch.autograd.grad(found, leaves, incoming), torch.autograd.grad(expected, others, incoming))


@every_layer
def test_heads_keep_the_initial_range_and_reset(name):
    layer = make(name, 5, 8, heads=4)
    before = layer.weight_hh_l0
    assert before.abs().max() <= 8**-0.5
    layer.reset_parameters()
    assert layer.weight_hh_l0 is before
    assert copy.deepcopy(layer).weight_hh_l0.shape == before.shape
    assert "heads=4" in repr(layer)


# --- recurrent dropout, weight dropout, zoneout -----------------------------------------------------------------------


@every_layer
def test_recurrent_dropout_is_one_inverted_mask_a_sample_layer_and_direction(name, calls, device):
    layer = make(name, 5, 64, 2, bidirectional=True, recurrent_dropout=0.25, device=device)
    layer(X.to(device))
    masks = [arguments[7] for arguments, _, _ in calls]
    assert len(masks) == 2 and not torch.equal(*masks)
    for mask in masks:
        assert mask.shape == (2, 4, 64)
        assert set(mask.unique().tolist()) == {0.0, 1 / 0.75}
        assert 0.65 < mask.count_nonzero() / mask.numel() < 0.85
        assert not torch.equal(mask[:, 0], mask[:, 1]) and not torch.equal(mask[0], mask[1])
    assert_calls_are_the_reference(calls)


@every_layer
@pytest.mark.parametrize("keyword", ["recurrent_dropout", "weight_dropout"])
def test_dropout_of_every_kind_is_the_identity_in_eval(name, keyword):
    plain, dropping = make(name, 5, 8, 2), make(name, 5, 8, 2, **{keyword: 0.5})
    assert not torch.equal(plain(X)[0], dropping(X)[0])
    assert torch.equal(plain.eval()(X)[0], dropping.eval()(X)[0])


@every_layer
def test_weight_dropout_is_one_inverted_mask_a_call_on_each_recurrent_weight(name, calls):
    layer = make(name, 5, 32, weight_dropout=0.25)
    before = copy.deepcopy(layer.state_dict())
    y, _ = layer(X)
    layer(X)
    (one, *_), (other, *_) = calls
    used = one[1][1]
    kept = used != 0
    assert 0.65 < kept.double().mean() < 0.85
    assert_close(used[kept], layer.weight_hh_l0[kept] / 0.75)
    assert not torch.equal(kept, other[1][1] != 0)
    assert all(torch.equal(one, other) for one, other in zip(one[1][2:], list(layer.parameters())[2:], strict=True))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    y.sum().backward()
    assert torch.equal(layer.weight_hh_l0.grad != 0, kept)


@every_layer
def test_zoneout_keeps_old_values_of_h_and_with_another_mask_of_c(name, calls, device):
    layer = make(name, 5, 32, bidirectional=True, zoneout=0.25, device=device)
    layer(X.to(device))
    ((arguments, _, _),) = calls
    zoneout_h, zoneout_c, share = arguments[8:11]
    assert zoneout_h.shape == (2, 6, 4, 32) and zoneout_h.dtype == torch.bool and share == 0
    assert 0.2 < zoneout_h.double().mean() < 0.3
    if name == "LSTM":
        assert zoneout_c.shape == (2, 6, 4, 32) and not torch.equal(zoneout_h, zoneout_c)
    else:
        assert zoneout_c is None
    assert_calls_are_the_reference(calls)


@every_layer
def test_zoneout_blends_in_eval(name, calls, device):
    layer = make(name, 5, 8, zoneout=0.25, device=device).eval()
    y, _ = layer(X.to(device))
    assert_calls_are_the_reference(calls)
    cell_name = {"LSTM": "LSTMCell", "GRU": "GRUCell", "RNN": "RNNCell"}[name]
    cell = getattr(nn, cell_name)(5, 8, dtype=torch.float64, device=device)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    h = c = torch.zeros(4, 8, dtype=torch.float64, device=device)
    expected = []
    for x in X.to(device):
        if name == "LSTM":
            h_new, c_new = cell(x, (h, c))
            c = 0.25 * c + 0.75 * c_new
        else:
            h_new = cell(x, h)
        h = 0.25 * h + 0.75 * h_new
        expected.append(h)
    assert_close(y, torch.stack(expected))


@every_layer
def test_certain_zoneout_and_certain_dropout(name):
    hx = states(make(name, 5, 8), 4)
    y, after = make(name, 5, 8, zoneout=1.0)(X, hx)
    assert_close(after, hx)
    assert_close(y[0], tensors_of(hx)[0][0])
    y, _ = make(name, 5, 8, recurrent_dropout=1.0)(X, hx)
    assert y.isfinite().all()


@every_layer
@pytest.mark.parametrize("option", ["dropout", "recurrent_dropout", "weight_dropout", "zoneout"])
def test_masks_are_drawn_without_gradients_too(name, option, device):
    """As Monte Carlo dropout needs them: a layer in training mode, under no_grad."""
    layer, x = make(name, 5, 8, 2, **{option: 0.5}, device=device), X.to(device)
    torch.manual_seed(9)
    expected = layer(x)
    torch.manual_seed(9)
    with torch.no_grad():
        assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masks_do_not_depend_on_the_dtype(dtype, calls, device):
    options = {"recurrent_dropout": 0.3, "weight_dropout": 0.3, "zoneout": 0.3}
    for one in (torch.float64, dtype):
        layer = make("LSTM", 5, 64, dtype=one, device=device, **options)
        torch.nn.init.ones_(layer.weight_hh_l0)  # torch before 2.13 draws zeros in 16 bits
        torch.manual_seed(9)
        layer(X.to(device, one))
    (expected, _, _), (found, _, _) = calls
    for masked in (lambda given: given[1][1], lambda given: given[7], lambda given: given[8], lambda given: given[9]):
        assert torch.equal(masked(found) != 0, masked(expected) != 0)


@pytest.mark.parametrize("option", ["recurrent_dropout", "zoneout"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_masks_do_not_depend_on_the_default_dtype(option, default):
    layer = make("LSTM", 5, 8, **{option: 0.3})
    torch.manual_seed(9)
    expected = layer(X)[0]
    torch.manual_seed(9)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(layer(X)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


@every_layer
def test_masks_follow_the_seed_and_the_shapes_alone(name):
    options = {"dropout": 0.3, "recurrent_dropout": 0.3, "weight_dropout": 0.3, "zoneout": 0.3}
    layer = make(name, 5, 8, 2, bidirectional=True, **options)
    first = make(name, 5, 8, 2, bidirectional=True, batch_first=True, **options)

    def draw(call):
        torch.manual_seed(9)
        result = call()
        return result[0], torch.rand(1)

    y, after = draw(lambda: layer(X))
    assert torch.equal(y, draw(lambda: layer(X))[0])
    assert_close(draw(lambda: first(X.transpose(0, 1)))[0].transpose(0, 1), y)
    mask = torch.rand(6, 4) < 0.5
    for keywords in ({"lengths": torch.tensor([6, 3, 0, 1])}, {"reset_mask": mask}, {"hx": states(layer, 4)}):
        _, position = draw(lambda keywords=keywords: layer(X, **keywords))
        assert torch.equal(position, after)
    short, _ = draw(lambda: layer(X, lengths=torch.tensor([6, 3, 0, 1])))
    assert_close(short[:1, 0, :8], y[:1, 0, :8])  # what no length touches: the forward direction of the first sample


@every_layer
def test_packed_and_padded_sequences_share_the_recurrent_mask(name):
    layer = make(name, 5, 8, bidirectional=True, recurrent_dropout=0.5)
    lengths = torch.tensor([3, 6, 1, 4])
    torch.manual_seed(1)
    _, expected = layer(X, lengths=lengths)
    torch.manual_seed(1)
    _, found = layer(pack_padded_sequence(X, lengths, enforce_sorted=False))
    assert_close(found, expected)


# --- forget bias, reset before, sigmoid -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, 0.0, -2])
def test_forget_bias_fills_the_forget_slice_and_nothing_else(value):
    plain = make("LSTM", 5, 8, 2, bidirectional=True)
    biased = make("LSTM", 5, 8, 2, bidirectional=True, forget_bias=value)
    for (key, one), other in zip(plain.named_parameters(), biased.parameters(), strict=True):
        expected = one.clone()
        if key.startswith("bias_ih"):
            expected[8:16] = value
        assert torch.equal(expected, other)
    torch.manual_seed(0)
    biased.reset_parameters()
    assert (biased.bias_ih_l1_reverse[8:16] == value).all()


def test_reset_before_is_the_formula_of_cho_et_al():
    layer = make("GRU", 5, 8, reset_after=False)
    y, _ = layer(X)
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    h = torch.zeros(4, 8, dtype=torch.float64)
    for t in range(6):
        x_r, x_z, x_n = (X[t] @ w_ih.t() + b_ih).chunk(3, 1)
        w_r, w_z, w_n = w_hh.chunk(3)
        b_r, b_z, b_n = b_hh.chunk(3)
        r, z = torch.sigmoid(x_r + h @ w_r.t() + b_r), torch.sigmoid(x_z + h @ w_z.t() + b_z)
        h = (1 - z) * torch.tanh(x_n + (r * h) @ w_n.t() + b_n) + z * h
        assert_close(y[t], h)
    assert "reset_after=False" in repr(layer)


def test_sigmoid_is_the_classic_recurrent_network():
    layer = make("RNN", 5, 8, nonlinearity="sigmoid")
    assert repr(layer) == "RNN(5, 8, nonlinearity=sigmoid)"
    torch.manual_seed(0)
    for one, other in zip(layer.parameters(), nn.RNN(5, 8, dtype=torch.float64).parameters(), strict=True):
        assert torch.equal(one, other)
    y, _ = layer(X)
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    h = torch.zeros(4, 8, dtype=torch.float64)
    for t in range(6):
        h = torch.sigmoid(X[t] @ w_ih.t() + b_ih + h @ w_hh.t() + b_hh)
        assert_close(y[t], h)


# --- recompute, state sequences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 3}),
        ("GRU", {"heads": 2}),
        ("GRU", {"reset_after": False}),
        ("RNN", {"zoneout": 0.3, "recurrent_dropout": 0.3}),
        ("LSTM", {"zoneout": 0.3, "recurrent_dropout": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["padded", "packed", "reset"])
def test_recompute_gives_the_same_gradients(name, options, kind, device):
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    lengths = torch.tensor([3, 6, 1, 4])
    results = []
    for recompute in (False, True):
        layer = make(name, 5, 8, 2, bidirectional=True, recompute=recompute, device=device, **options)
        x = X.to(device, copy=True).requires_grad_()
        keywords = {"lengths": lengths, "reset_mask": mask.to(device)} if kind == "reset" else {}
        torch.manual_seed(2)
        argument = pack_padded_sequence(x, lengths, enforce_sorted=False) if kind == "packed" else x
        outputs = tensors_of(layer(argument, states(layer, 4, device=device), **keywords))
        gradients = torch.autograd.grad(outputs, [x, *layer.parameters()], random_like(outputs))
        results.append((outputs, gradients))
    assert_close(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1], gradient=True)


@every_layer
def test_the_state_sequence_holds_the_states_after_every_step(name, device):
    layer = make(name, 5, 8, 2, bidirectional=True, device=device)
    x = X.to(device)
    hx = states(layer, 4, device=device)
    _, after, sequence = layer(x, hx, return_state_sequence=True)
    assert sequence.shape == (4, 6, 4, 8)
    last = after[1] if name == "LSTM" else after
    for index in range(4):
        final = 0 if index % 2 else 5  # the reverse direction ends at the first step
        assert torch.equal(sequence[index, final], last[index])
    stopped = layer(x[:3], hx)[1]
    forward = 0  # the first layer's forward direction has seen the same until then
    assert_close(sequence[forward, 2], (stopped[1] if name == "LSTM" else stopped)[forward])
    assert torch.autograd.grad(sequence[0].sum(), layer.weight_hh_l0)[0].any()


@every_layer
@pytest.mark.parametrize("layers", [1, 2])
def test_the_state_sequence_is_no_part_of_the_output(name, layers):
    with torch.no_grad():
        y, _, sequence = make(name, 5, 8, layers)(X, return_state_sequence=True)
        before = sequence.clone()
        y.zero_()
    assert torch.equal(sequence, before)


def test_the_state_sequence_of_a_packed_sequence_is_in_packed_order():
    layer = make("LSTM", 5, 8, 2, bidirectional=True)
    x = pack_padded_sequence(X, [6, 4, 3, 1])
    _, (_, c_n), sequence = layer(x, return_state_sequence=True)
    assert sequence.shape == (4, 14, 8)
    assert torch.equal(sequence[1, 0], c_n[1, 0])  # the first row is the first sample's first step
    assert torch.equal(sequence[0, -1], c_n[0, 0])  # the last row is the longest sample's last step


# --- all of them ------------------------------------------------------------------------------------------------------


def test_repr_names_what_torch_does_not_know():
    layer = rnnkern.LSTM(5, 8, 2, recompute=True, recurrent_dropout=0.1, zoneout=0.3, forget_bias=1.0)
    expected = "LSTM(5, 8, num_layers=2, forget_bias=1.0, recompute=True, recurrent_dropout=0.1, zoneout=0.3)"
    assert repr(layer) == expected


@every_layer
def test_features_work_together_on_a_ragged_batch(name):
    keywords = {"heads": 2, "recurrent_dropout": 0.2, "weight_dropout": 0.2, "zoneout": 0.2, "dropout": 0.2}
    layer = make(name, 5, 8, 2, bidirectional=True, recompute=True, **keywords)
    lengths = torch.tensor([3, 6, 0, 4])
    x = X.masked_fill((torch.arange(6)[:, None] >= lengths)[..., None], float("nan")).requires_grad_()
    outputs, gradients = outputs_and_gradients(
        layer, x, states(layer, 4), lengths=lengths, reset_mask=torch.rand(6, 4) < 0.3, return_state_sequence=True
    )
    assert all(tensor.isfinite().all() for tensor in outputs + gradients)
    plain, _ = pair(name, 5, 8)
    assert len(outputs) == len(tensors_of(plain(X))) + 1
