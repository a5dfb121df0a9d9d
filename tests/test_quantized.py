"""int8 weights: the kernels compute what plain torch computes with rounded operands, close to the float layer."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode

import helpers
import rnnkern
from comparison import assert_close, error, states, tensors_of
from helpers import CELLS, OperatorCalls, every_cell, forced_isa, instruction_sets, named, pairwise, problem
from rnnkern import int8, reference

OPTIONS = {
    "cell": CELLS,
    "schedule": helpers.SCHEDULES,
    "width": helpers.WIDTHS,
    "masks": ("none", "zoneout_eval"),
    "bidirectional": (False, True),
    "bias": (True, False),
    "reset": helpers.RESETS,
    "hidden_size": (1, 7, 16, 33, 64, 130),
    "input_size": (1, 5, 16),
    "steps": (1, 2, 7),
    "batch": (1, 3, 9),
}
# A value within rounding of the middle between two bytes may become either: one of 254 steps in one operand.
ONE_STEP_OF_A_BYTE = 2e-3


@pytest.fixture(params=instruction_sets())
def isa(request):
    """Every instruction set of this machine, forced."""
    with forced_isa(request.param) as name:
        yield name


def in_bytes(values, *dims):
    """Rounded to 255 steps of its largest magnitude over `dims`, in float32 as the kernels round."""
    largest = values.float().abs().amax(dims, keepdim=True)
    rounded = (values.float() * torch.where(largest > 0, 127 / largest, 0)).round()
    return rounded.to(values.dtype) * (largest / 127)


class ProductsInBytes(TorchFunctionMode):
    """Within it the reference's products round both operands: each row of a weight, each row of the other."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.matmul:  # operand [..., B, K] @ weight.t() [K, rows]
            return func(in_bytes(args[0], -1), in_bytes(args[1], 0))
        if func is torch.einsum:  # weight [gate, head, unit, k], operand [B, head, k]
            return func(args[0], in_bytes(args[1], 3), in_bytes(args[2], 1, 2))
        return func(*args, **(kwargs or {}))


def by_int8(
    x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout, *, cell,
    bidirectional, heads,
):  # fmt: skip
    """`reference.layer` by the kernels, the weights quantised for this call."""
    assert recurrent_mask is zoneout_h is zoneout_c is None
    count = len(weights) // (2 if bidirectional else 1)
    directions = [weights[first : first + count] for first in range(0, len(weights), count)]
    packed = [part for own in directions for w in int8.pack_direction(own, cell, heads).values() for part in w]
    biases = [bias for own in directions for bias in own[2:4]] if count > 3 else []
    hidden_size = weights[0].shape[0] // reference.GATES[cell]
    return int8.layer(
        (packed, biases), x, h_0, c_0, lengths, reset_mask, batch_sizes, zoneout, cell=cell, hidden_size=hidden_size,
        proj_size=weights[-1].shape[0] if count % 2 else 0, bidirectional=bidirectional, heads=heads, want_cells=True,
    )  # fmt: skip


def emulated(one):
    with ProductsInBytes():
        return one.in_double().run(reference.layer)


@pytest.mark.parametrize("choice", pairwise(seed=3, **OPTIONS), ids=named)
def test_every_pair_of_options_is_the_reference_with_products_in_bytes(choice, isa):
    one = problem(dtype=torch.float32, **choice)
    for found, expected in zip(one.run(by_int8), emulated(one), strict=True):
        assert error(found, expected) <= ONE_STEP_OF_A_BYTE


@pytest.mark.parametrize("hidden_size", [33, 256])
@every_cell
def test_one_step_is_exact_up_to_float32s_rounding(cell, hidden_size, isa):
    one = problem(cell, dtype=torch.float32, steps=1, batch=6, input_size=40, hidden_size=hidden_size)
    assert_close(one.run(by_int8), emulated(one), torch.float32)


@every_cell
def test_wide_and_long_layers_stay_near_the_emulation(cell, isa):
    sizes = {"steps": 40, "batch": 5, "input_size": 70, "hidden_size": 160}
    one = problem(cell, "lengths", dtype=torch.float32, **sizes)
    for found, expected in zip(one.run(by_int8), emulated(one), strict=True):
        assert error(found, expected) <= 5 * ONE_STEP_OF_A_BYTE


@every_cell
def test_threads_and_batch_change_no_bit(cell, threads):
    for batch in (1, 6):
        one = problem(cell, dtype=torch.float32, steps=20, batch=batch, input_size=30, hidden_size=512)
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(one.run(by_int8))
        for others in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_extreme_rows():
    """Zeros stay zeros, the largest sums do not overflow, and what is not finite spoils its own row alone."""
    depth = 4096
    data, scale, total = int8.pack(torch.ones(1, depth) * 3, 1)
    assert data.unique().tolist() == [0, 127] and scale.max().item() == pytest.approx(3 / 127)
    x = torch.full((1, 5, depth), 2.0)
    x[0, 1], x[0, 2, 7], x[0, 3, 9], x[0, 4] = 0.0, float("nan"), float("inf"), -1e-42
    y, _, _, _ = int8.layer(
        ([data, scale, total, *int8.pack(torch.zeros(1, 1), 1)], []), x, torch.zeros(1, 5, 1), None, None, None, None,
        0.0, cell="rnn_relu", hidden_size=1, proj_size=0, bidirectional=False, heads=1,
        want_cells=False,
    )  # fmt: skip
    assert y[0, 0].item() == pytest.approx(6.0 * depth, rel=1e-6)
    assert y[0, 1].item() == 0 and y[0, 4].item() == 0
    assert y[0, 2].isnan() and y[0, 3].isnan()


# --- quantize_dynamic -------------------------------------------------------------------------------------------------

LAYERS = {
    "lstm": (rnnkern.LSTM, {}),
    "two-way stack": (rnnkern.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projection": (rnnkern.LSTM, {"proj_size": 24, "batch_first": True}),
    "gru": (rnnkern.GRU, {"num_layers": 2, "bias": False}),
    "gru_v1": (rnnkern.GRU, {"reset_after": False, "heads": 2}),
    "rnn": (rnnkern.RNN, {"nonlinearity": "sigmoid", "zoneout": 0.2}),
    "torch lstm": (torch.nn.LSTM, {"bidirectional": True}),
    "torch gru": (torch.nn.GRU, {"batch_first": True}),
    "torch rnn": (torch.nn.RNN, {"nonlinearity": "relu"}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def quantized(name):
    """`(the quantised layer, the float one in evaluation)`."""
    cls, keywords = LAYERS[name]
    layer = cls(20, 48, **keywords).eval()
    return rnnkern.quantize_dynamic(layer), layer


@every_layer
@torch.no_grad()
def test_a_quantised_layer_is_within_two_percent_of_the_float_one(name):
    ours, layer = quantized(name)
    x = torch.randn(6, 9, 20)
    found, expected = tensors_of(ours(x)), tensors_of(layer(x))
    for one, other in zip(found, expected, strict=True):
        assert 0 < error(one, other) <= 0.02


@pytest.mark.parametrize("name", ["lstm", "two-way stack", "projection", "gru_v1"])
@torch.no_grad()
def test_layouts_of_the_input_agree(name):
    """Unbatched, `lengths`, PackedSequence, resets, the state sequence and initial states, row by row."""
    ours, layer = quantized(name)
    x, lengths = torch.randn(7, 3, 20), torch.tensor([4, 7, 2])
    time = (lambda t: t.transpose(0, 1)) if layer.batch_first else (lambda t: t)
    whole, hx = ours(time(x), lengths=lengths)
    packed, packed_hx = ours(pack_padded_sequence(time(x), lengths, layer.batch_first, enforce_sorted=False))
    assert isinstance(packed, PackedSequence)
    padded = torch.nn.utils.rnn.pad_packed_sequence(packed, layer.batch_first, total_length=7)[0]
    assert torch.equal(padded, whole)
    for one, other in zip(tensors_of(packed_hx), tensors_of(hx), strict=True):
        assert torch.equal(one, other)
    for b, length in enumerate(lengths.tolist()):
        alone, alone_hx, states = ours(x[:length, b], return_state_sequence=True)
        assert torch.equal(alone, time(whole)[:length, b])
        for one, other in zip(tensors_of(alone_hx), tensors_of(hx), strict=True):
            assert torch.equal(one, other[:, b])
        if layer.mode == "LSTM":
            assert torch.equal(states[0, -1], alone_hx[1][0])
    resets = torch.zeros(7, 3, dtype=torch.bool)
    resets[3] = True
    cut, _ = ours(time(x), reset_mask=time(resets))
    parts = [time(ours(time(part))[0]) for part in (x[:3], x[3:])]
    assert torch.equal(time(cut), torch.cat(parts))


@every_layer
@torch.no_grad()
def test_steps_are_the_sequence(name):
    ours, layer = quantized(name)
    x = torch.randn(5, 3, 20)
    if layer.bidirectional:
        with pytest.raises(ValueError, match="bidirectional"):
            ours.step(x[0])
        return
    time = (lambda t: t.transpose(0, 1)) if layer.batch_first else (lambda t: t)
    whole, hx = ours(time(x))
    state, outputs = None, []
    for t in range(5):
        output, state = ours.step(x[t], state)
        outputs.append(output)
    assert torch.equal(torch.stack(outputs), time(whole))
    for one, other in zip(tensors_of(state), tensors_of(hx), strict=True):
        assert torch.equal(one, other)


@every_layer
@pytest.mark.parametrize("given", [True, False])
@torch.no_grad()
def test_plain_calls_go_past_the_operator_with_its_bits(name, given, monkeypatch):
    ours, layer = quantized(name)
    x = torch.randn(3, 4, 20)
    hx = states(layer, 3 if layer.batch_first else 4, torch.float32, requires_grad=False) if given else None
    calls = [lambda: ours(x, hx)]
    if not layer.bidirectional:
        calls.append(lambda: ours.step(x[0], None if layer.batch_first else hx))
    for call in calls:
        with OperatorCalls() as operators:
            expected = tensors_of(call())
        assert operators.names == ["int8_forward"] * layer.num_layers
        with monkeypatch.context() as patch:
            patch.setattr(int8, "layer", lambda *_, **__: pytest.fail("the operator was called"))
            found = tensors_of(call())
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@every_layer
@torch.no_grad()
def test_copies_pickles_and_states_are_equal(name):
    ours, layer = quantized(name)
    x = torch.randn(4, 2, 20)
    expected = ours(x)[0]
    assert torch.equal(copy.deepcopy(ours)(x)[0], expected)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x)[0], expected)
    other = rnnkern.quantize_dynamic(type(layer)(20, 48, **LAYERS[name][1]))
    assert not torch.equal(other(x)[0], expected)
    stored = io.BytesIO()
    torch.save(ours.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored))
    assert torch.equal(other(x)[0], expected)
    assert sum(b.nbytes for b in ours.buffers()) < 0.5 * sum(p.nbytes for p in layer.parameters())
    assert not list(ours.parameters())


def test_a_model_is_copied_and_its_layers_swapped_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.GRU(8, 8)
            self.again = self.encoder
            self.decoder = torch.nn.ModuleList([rnnkern.LSTM(8, 8), torch.nn.Linear(8, 8)])

    model = Model()
    before = copy.deepcopy(model.state_dict())
    quantised = rnnkern.quantize_dynamic(model)
    assert type(model.encoder) is torch.nn.GRU and type(model.decoder[0]) is rnnkern.LSTM
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert quantised.again is quantised.encoder
    assert repr(quantised.encoder) == "QuantizedGRU(8, 8, weights=int8)"
    assert repr(quantised.decoder[0]) == "QuantizedLSTM(8, 8, weights=int8)"
    assert type(quantised.decoder[1]) is torch.nn.Linear
    assert repr(rnnkern.quantize_dynamic(quantised)) == repr(quantised)


def test_it_says_what_the_float_layer_says():
    for layer in (rnnkern.LSTM(5, 8, 2, dropout=0.5, bidirectional=True), rnnkern.RNN(5, 8, nonlinearity="relu")):
        quantised = rnnkern.quantize_dynamic(layer)
        for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                     "bidirectional", "proj_size"):  # fmt: skip
            assert getattr(quantised, name) == getattr(layer, name)


def test_what_cannot_be_quantised_is_named_and_left():
    class Own(torch.nn.LSTM):
        pass

    hooked = rnnkern.GRU(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    model = torch.nn.ModuleDict(
        {"own": Own(4, 4), "cell": torch.nn.LSTMCell(4, 4), "in_double": rnnkern.RNN(4, 4).double(), "hooked": hooked}
    )
    model["named"] = torch.nn.LSTM(4, 4)
    model["named"].zoneout = 0.1
    with pytest.warns(UserWarning, match="quantize_dynamic left as they are") as caught:
        quantised = rnnkern.quantize_dynamic(model)
    message = str(caught[0].message)
    for name in model:
        assert f"{name} ({type(model[name]).__name__})" in message
        assert type(quantised[name]) is type(model[name])


def test_a_wanted_gradient_raises():
    ours, _ = quantized("lstm")
    x = torch.randn(3, 2, 20, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        ours(x)
    with pytest.raises(RuntimeError, match="no gradient"):
        torch.func.jvp(lambda t: ours(t)[0], (x.detach(),), (torch.ones_like(x),))
    state = torch.zeros(1, 2, 48, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        ours(x.detach(), (state, state))
    with torch.no_grad():
        assert not ours(x)[0].requires_grad
    assert not ours(x.detach())[0].requires_grad


@torch.no_grad()
def test_wrong_inputs_raise():
    ours, _ = quantized("lstm")
    with pytest.raises(TypeError, match="float32, got an input of torch.float64"):
        ours(torch.randn(3, 2, 20, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="Expected 20, got 19"):
        ours(torch.randn(3, 2, 19))
    with pytest.raises(RuntimeError, match="hidden"):
        ours(torch.randn(3, 2, 20), (torch.zeros(1, 3, 48),) * 2)
    with pytest.raises(TypeError, match="computes in float32, got scales of torch.float16"):
        copy.deepcopy(ours).half()(torch.randn(3, 2, 20))
    for elsewhere in (copy.deepcopy(ours).to("meta"), copy.deepcopy(ours)):
        elsewhere.bias_ih_l0 = elsewhere.bias_ih_l0.to("meta")
        for call in (elsewhere, lambda x, layer=elsewhere: layer.step(x[0])):
            with pytest.raises(RuntimeError, match="found input tensor at cpu and parameter tensor at meta"):
                call(torch.randn(3, 2, 20))
    broken = copy.deepcopy(ours)
    broken.weight_hh_l0 = broken.weight_hh_l0[:, :1]
    with pytest.raises(ValueError, match=r"weight_hh: expected shape \[1, 3, 12, 4, 16, 4\]"):
        broken(torch.randn(3, 2, 20))


@torch.no_grad()
def test_negative_views_are_read_as_what_they_stand_for():
    ours, _ = quantized("lstm")
    x = torch.randn(3, 2, 20)
    expected = ours(x)[0]
    assert torch.equal(ours(torch._neg_view(-x))[0], expected)
    ours.weight_hh_l0_scale = torch._neg_view(-ours.weight_hh_l0_scale)
    assert torch.equal(ours(x)[0], expected)
    assert torch.equal(ours.step(x[0])[0], expected[0])


@torch.no_grad()
def test_autocast_and_training_mode_change_nothing():
    ours = rnnkern.quantize_dynamic(torch.nn.LSTM(20, 48, num_layers=2, dropout=0.5))
    assert ours.training
    x = torch.randn(3, 2, 20)
    expected = ours.eval()(x)[0]
    assert torch.equal(ours.train()(x)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x)[0], expected)


@torch.no_grad()
def test_compiled_it_is_one_graph():
    ours, _ = quantized("two-way stack")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 20)
    assert torch.equal(compiled(x)[0], ours(x)[0])


@pytest.mark.parametrize("want_cells", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_v1"])
def test_the_operator_passes_opcheck(cell, want_cells):
    one = problem(cell, "lengths+reset", dtype=torch.float32)
    t = one.tensors
    packed = [part for w in int8.pack_direction(t["weights"], cell, 1).values() for part in w]
    arguments = (
        t["x"], packed, t["weights"][2:4], t["h_0"], t["c_0"], t["lengths"], t["reset_mask"], None, 0.0, cell, 4,
        0, False, 1, want_cells,
    )  # fmt: skip
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    stateless = (*arguments[:3], None, None, *arguments[5:])
    for these in (arguments, stateless):
        torch.library.opcheck(torch.ops.rnnkern.int8_forward.default, these, test_utils=utilities)


def test_plan_and_explain_say_int8():
    ours, layer = quantized("two-way stack")
    x = torch.randn(30, 1, 20)
    found = rnnkern.plan(ours, x)
    assert found["strategy"] == "simd" and len(found["layers"]) == 2 and found["saved_bytes"] == 0
    assert found["floor_us"] < rnnkern.plan(layer, x)["floor_us"]
    text = rnnkern.explain(ours, x)
    assert text.startswith("QuantizedLSTM(20, 48") and "int8" in text
    with pytest.raises(TypeError, match="float32"):
        rnnkern.plan(ours, x.double())
