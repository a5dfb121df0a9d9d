"""A call with what does not fit is refused with one error that names the argument, what was expected and what came."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkern
from comparison import assert_refused
from rnnkern import checks, functional

X = torch.zeros(6, 4, 5)
H = torch.zeros(1, 4, 8)
LSTM, GRU, RNN = rnnkern.LSTM, rnnkern.GRU, rnnkern.RNN
PACKED = pack_padded_sequence(X, [6, 4, 3, 1])
WEIGHTS = list(LSTM(5, 8).parameters())


def packed_mask(lengths=(6, 4, 3, 1)):
    return pack_padded_sequence(torch.zeros(6, 4, dtype=torch.bool), lengths)


def with_parameter(layer, name, parameter):
    setattr(layer, name, nn.Parameter(parameter, requires_grad=False))
    return layer


SIZES = {
    "input of 1 dimension": (
        lambda: LSTM(5, 8)(X[0, 0]),
        ValueError,
        "LSTM: Expected input to be 2D or 3D, got 1D instead",
    ),
    "input of 4 dimensions": (
        lambda: RNN(5, 8)(X[None]),
        ValueError,
        "RNN: Expected input to be 2D or 3D, got 4D tensor instead",
    ),
    "input size": (lambda: GRU(7, 8)(X), RuntimeError, "input.size(-1) must be equal to input_size. Expected 7, got 5"),
    "packed input size": (
        lambda: LSTM(7, 8)(PACKED),
        RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 7, got 5",
    ),
    "packed data of 1 dimension": (
        lambda: GRU(5, 8)(PACKED._replace(data=PACKED.data[:, 0])),
        RuntimeError,
        "input must have 2 dimensions, got 1",
    ),
    "states of the unbatched": (
        lambda: LSTM(5, 8)(X, (H[0], H[0])),
        RuntimeError,
        "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D) tensors",
    ),
    "three states": (lambda: LSTM(5, 8)(X, (H, H, H)), RuntimeError, "lstm expects two hidden states, got 3"),
    "three states, no gradient": (
        lambda: no_grad(lambda: LSTM(5, 8)(X, (H, H, H))),
        RuntimeError,
        "lstm expects two hidden states, got 3",
    ),
    "three states of a packed sequence": (
        lambda: LSTM(5, 8)(PACKED, (H, H, H)),
        RuntimeError,
        "lstm expects two hidden states, got 3",
    ),
    "a state of two": (
        lambda: no_grad(lambda: LSTM(5, 8)(X, (H, None))),
        TypeError,
        "lstm: hx must be a pair of tensors, got Tensor and NoneType",
    ),
    "states stacked": (
        lambda: no_grad(lambda: LSTM(5, 8)(X, torch.stack([H, H]))),
        TypeError,
        "lstm: hx must be the pair (h_0, c_0), got one tensor of size [2, 1, 4, 8]",
    ),
    "step's states stacked": (
        lambda: no_grad(lambda: LSTM(5, 8).step(X[0, 0], torch.zeros(2, 1, 8))),
        TypeError,
        "lstm: hx must be the pair (h_0, c_0), got one tensor of size [2, 1, 8]",
    ),
    "cell's three states": (
        lambda: rnnkern.LSTMCell(5, 8)(X[0], (H[0], H[0], H[0])),
        RuntimeError,
        "lstm_cell expects two hidden states, got 3",
    ),
    "cell's states stacked": (
        lambda: rnnkern.LSTMCell(5, 8)(X[0], torch.stack([H[0], H[0]])),
        TypeError,
        "lstm_cell: hx must be the pair (h_0, c_0), got one tensor of size [2, 4, 8]",
    ),
    "states of a batch": (
        lambda: GRU(5, 8)(X[:, 0], H),
        RuntimeError,
        "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor",
    ),
    "state's batch": (
        lambda: LSTM(5, 8)(X, (H[:, :2], H)),
        RuntimeError,
        "Expected hidden[0] size (1, 4, 8), got [1, 2, 8]",
    ),
    "cell state's width": (
        lambda: LSTM(5, 8)(X, (H, H[..., :3])),
        RuntimeError,
        "Expected hidden[1] size (1, 4, 8), got [1, 4, 3]",
    ),
    "state's layers": (lambda: GRU(5, 8, 2)(X, H), RuntimeError, "Expected hidden size (2, 4, 8), got [1, 4, 8]"),
    "packed state's batch": (
        lambda: LSTM(5, 8)(PACKED, (H[:, :2], H[:, :2])),
        RuntimeError,
        "Expected hidden[0] size (1, 4, 8), got [1, 2, 8]",
    ),
    "packed rows": (
        lambda: GRU(5, 8)(PackedSequence(PACKED.data[:-1], PACKED.batch_sizes)),
        ValueError,
        "batch_sizes: expected a sum equal to the number of rows 13, got 14",
    ),
    "batch sizes that rise": (
        lambda: GRU(5, 8)(PackedSequence(X[0], torch.tensor([1, 3]))),
        ValueError,
        "batch_sizes: expected positive values that do not rise, the first at most the states' batch size 1, "
        "got 3 at index 1",
    ),
    "step's dimensions": (
        lambda: GRU(5, 8).step(X),
        ValueError,
        "GRU: Expected input_t to be 1D or 2D, got 3D instead",
    ),
    "step's input size": (
        lambda: GRU(7, 8).step(X[0]),
        RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 7, got 5",
    ),
    "step's state": (
        lambda: no_grad(lambda: LSTM(5, 8, 2).step(X[0], (H, H))),
        RuntimeError,
        "Expected hidden[0] size (2, 4, 8), got [1, 4, 8]",
    ),
    "step's spare layers": (
        lambda: no_grad(lambda: GRU(5, 8).step(X[0], torch.cat([H, H]))),
        RuntimeError,
        "Expected hidden size (1, 4, 8), got [2, 4, 8]",
    ),
    "bidirectional step": (
        lambda: GRU(5, 8, bidirectional=True).step(X[0]),
        ValueError,
        "step: a bidirectional layer needs the whole sequence, call forward",
    ),
    "a parameter's size": (
        lambda: with_parameter(GRU(5, 8), "weight_hh_l0", torch.zeros(24, 7))(X),
        ValueError,
        "weight_hh: expected shape [24, 8], got [24, 7]",
    ),
    "number of weights": (
        lambda: functional.lstm(X, None, WEIGHTS[:3], num_layers=2),
        ValueError,
        "weights: expected 2, 3, 4 or 5 a layer and direction, got 3 for 2 x 1",
    ),
    "projection of a GRU": (
        lambda: functional.gru(X, None, WEIGHTS[:3]),
        ValueError,
        "weights: expected 2 or 4 a layer and direction, got 3 for 1 x 1",
    ),
    "a weight's size": (
        lambda: functional.lstm(X, None, [WEIGHTS[0], WEIGHTS[1], WEIGHTS[2], WEIGHTS[3][:8]]),
        ValueError,
        "weights[3]: expected size [32], got [8]",
    ),
    "cell's input size": (
        lambda: rnnkern.LSTMCell(7, 8)(X[0]),
        RuntimeError,
        "input has inconsistent input_size: got 5 expected 7",
    ),
    "cell's batch": (
        lambda: rnnkern.LSTMCell(5, 8)(X[0], (H[0, :2], H[0, :2])),
        RuntimeError,
        "Input batch size 4 doesn't match hidden0 batch size 2",
    ),
    "cell state's batch": (
        lambda: rnnkern.LSTMCell(5, 8)(X[0], (H[0], H[0, :1])),
        RuntimeError,
        "Input batch size 4 doesn't match hidden1 batch size 1",
    ),
    "cell state's size": (
        lambda: rnnkern.LSTMCell(5, 8)(X[0], (H[0], H[0, :, :3])),
        RuntimeError,
        "hidden1 has inconsistent hidden_size: got 3, expected 8",
    ),
    "cell's batched state of one sample": (
        lambda: rnnkern.GRUCell(5, 8)(X[0, 0], torch.zeros(8, 8)),
        RuntimeError,
        "hidden0: expected size [1, 8], got [1, 8, 8]",
    ),
    "cell's unbatched state of a batch": (
        lambda: rnnkern.GRUCell(5, 8)(X[0], torch.zeros(4)),
        RuntimeError,
        "hidden0 has inconsistent hidden_size: got 1 dimension, expected 8",
    ),
}

DTYPES_AND_DEVICES = {
    "input's dtype": (
        lambda: LSTM(5, 8)(X.double()),
        ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
    ),
    "state's dtype": (
        lambda: LSTM(5, 8)(X, (H, H.double())),
        ValueError,
        "hx must have the input's dtype: expected torch.float32, got torch.float64",
    ),
    "step's dtype": (
        lambda: no_grad(lambda: GRU(5, 8).step(X[0], H.half())),
        ValueError,
        "hx must have the input's dtype: expected torch.float32, got torch.float16",
    ),
    "cell state's dtype": (
        lambda: rnnkern.GRUCell(5, 8)(X[0], H[0].double()),
        ValueError,
        "hx must have the input's dtype: expected torch.float32, got torch.float64",
    ),
    "complex parameters": (
        lambda: functional.lstm(X.cfloat(), None, [weight.cfloat() for weight in WEIGHTS]),
        TypeError,
        "rnnkern computes in float64, float32, bfloat16 and float16, got parameters of torch.complex64",
    ),
    "parameters of two dtypes": (
        lambda: with_parameter(GRU(5, 8), "weight_hh_l0", torch.zeros(24, 8).double())(X),
        TypeError,
        "all parameters must have one dtype, got torch.float32 and torch.float64",
    ),
    "parameters' device": (
        lambda: GRU(5, 8, device="meta")(X),
        RuntimeError,
        "Input and parameter tensors are not at the same device, "
        "found input tensor at cpu and parameter tensor at meta",
    ),
    "state's device": (
        lambda: GRU(5, 8)(X, H.to("meta")),
        RuntimeError,
        "Input and hidden tensors are not at the same device, found input tensor at cpu and hidden tensor at meta",
    ),
    "reset_mask's device": (
        lambda: GRU(5, 8)(X, reset_mask=torch.zeros(6, 4, dtype=torch.bool, device="meta")),
        RuntimeError,
        "Input and reset_mask tensors are not at the same device, "
        "found input tensor at cpu and reset_mask tensor at meta",
    ),
}

WHAT_IS_NO_TENSOR = {
    "state's type": (lambda: LSTM(5, 8)(X, 0), TypeError, "lstm: hx must be the pair (h_0, c_0), got int"),
    "a parameter that is None": (
        lambda: without(GRU(5, 8), "bias_hh_l0")(X),
        TypeError,
        "all parameters must be tensors, got Parameter, Parameter, Parameter, NoneType",
    ),
    "a parameter that is None, under autocast": (
        lambda: torch.autocast("cpu", torch.bfloat16)(without(GRU(5, 8), "bias_hh_l0"))(X),
        TypeError,
        "all parameters must be tensors, got Tensor, Tensor, Tensor, NoneType",
    ),
    "a weight that is None": (
        lambda: rnnkern.functional.gru(X, None, [torch.zeros(24, 5), torch.zeros(24, 8), None, None]),
        TypeError,
        "weights[2]: expected a tensor, got NoneType",
    ),
    "a sparse input": (
        lambda: rnnkern.GRUCell(5, 8)(X[0].to_sparse()),
        TypeError,
        "input must be a dense tensor, got one of layout torch.sparse_coo: input.to_dense()",
    ),
    "quantised weights in another dtype": (
        lambda: no_grad(lambda: rnnkern.quantize_dynamic(LSTM(5, 8)).half()(X)),
        TypeError,
        "a layer with int8 weights computes in float32, got scales of torch.float16",
    ),
}

LENGTHS_AND_MASKS = {
    "negative length": (
        lambda: LSTM(5, 8)(X, lengths=torch.tensor([1, 2, -3, 4])),
        ValueError,
        "lengths: expected values from 0 to the number of time steps 6, got -3 at index 2",
    ),
    "length past the end": (
        lambda: LSTM(5, 8)(X, lengths=torch.tensor([1, 2, 3, 7])),
        ValueError,
        "lengths: expected values from 0 to the number of time steps 6, got 7 at index 3",
    ),
    "count of lengths": (
        lambda: LSTM(5, 8)(X, lengths=torch.tensor([1, 2])),
        ValueError,
        "lengths must have one entry a sequence: expected size [4], got [2]",
    ),
    "length of an unbatched input": (
        lambda: LSTM(5, 8)(X[:, 0], lengths=torch.tensor([1])),
        ValueError,
        "lengths must have one entry a sequence: expected size [], got [1]",
    ),
    "lengths' dtype": (
        lambda: LSTM(5, 8)(X, lengths=torch.ones(4)),
        TypeError,
        "lengths must be an integer tensor, got torch.float32",
    ),
    "lengths' type": (
        lambda: LSTM(5, 8)(X, lengths=[1, 2, 3, 4]),
        TypeError,
        "lengths must be an integer tensor, got list",
    ),
    "lengths of a packed sequence": (
        lambda: LSTM(5, 8)(PACKED, lengths=torch.tensor([6, 4, 3, 1])),
        ValueError,
        "lengths cannot be given with a PackedSequence, which has its own",
    ),
    "reset_mask's shape": (
        lambda: GRU(5, 8)(X, reset_mask=torch.zeros(4, 6, dtype=torch.bool)),
        ValueError,
        "reset_mask must have an entry a step: expected size [6, 4], got [4, 6]",
    ),
    "reset_mask's shape, batch first": (
        lambda: GRU(5, 8, batch_first=True)(X, reset_mask=torch.zeros(4, 6, dtype=torch.bool)),
        ValueError,
        "reset_mask must have an entry a step: expected size [6, 4], got [4, 6]",
    ),
    "reset_mask's shape, unbatched": (
        lambda: GRU(5, 8)(X[:, 0], reset_mask=torch.zeros(6, 1, dtype=torch.bool)),
        ValueError,
        "reset_mask must have an entry a step: expected size [6], got [6, 1]",
    ),
    "reset_mask's dtype": (
        lambda: GRU(5, 8)(X, reset_mask=torch.zeros(6, 4)),
        TypeError,
        "reset_mask must be of torch.bool, got torch.float32",
    ),
    "padded reset_mask of a packed input": (
        lambda: GRU(5, 8)(PACKED, reset_mask=torch.zeros(14, dtype=torch.bool)),
        TypeError,
        "reset_mask must be a PackedSequence of bools as the input is a PackedSequence, got Tensor",
    ),
    "packed reset_mask of a padded input": (
        lambda: GRU(5, 8)(X, reset_mask=packed_mask()),
        TypeError,
        "reset_mask must be a bool tensor as the input is a tensor, got PackedSequence",
    ),
    "packed reset_mask of other lengths": (
        lambda: GRU(5, 8)(PACKED, reset_mask=packed_mask((5, 5, 3, 1))),
        ValueError,
        "reset_mask must have the input's batch sizes",
    ),
}

ALL = {**SIZES, **DTYPES_AND_DEVICES, **WHAT_IS_NO_TENSOR, **LENGTHS_AND_MASKS}


def without(module, name):
    module.register_parameter(name, None)
    return module


def no_grad(function):
    with torch.no_grad():
        function()


@pytest.mark.parametrize("gradients", [True, False])  # without, calls go past what checks the others
@pytest.mark.parametrize(("call", "kind", "message"), ALL.values(), ids=ALL.keys())
def test_a_mistake_raises_one_clear_error(call, kind, message, gradients):
    with torch.set_grad_enabled(gradients):
        assert_refused(call, kind, message)


def test_a_device_without_kernels_points_to_torch(monkeypatch):
    monkeypatch.setattr(checks, "BACKENDS", ("cpu", "none"))
    with pytest.raises(RuntimeError) as caught:
        GRU(5, 8, device="meta")(X.to("meta"))
    assert str(caught.value) == (
        "rnnkern has no kernels for device 'meta' in this build (only for cpu); "
        "layer.to_torch() gives the equal torch.nn layer"
    )
    with pytest.raises(RuntimeError) as of_plan:
        rnnkern.plan(GRU(5, 8, device="meta"), X.to("meta"))
    assert str(of_plan.value) == str(caught.value)


def test_a_mask_in_another_order_of_packed_sequences_is_refused():
    x = pack_padded_sequence(X, torch.tensor([6, 3, 1, 4]), enforce_sorted=False)
    mask = pack_padded_sequence(torch.zeros(6, 4, dtype=torch.bool), torch.tensor([3, 6, 1, 4]), enforce_sorted=False)
    with pytest.raises(ValueError, match=r"reset_mask must have the input's order of sequences \(sorted_indices\)"):
        GRU(5, 8)(x, reset_mask=mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_lengths_on_cuda_are_checked_when_asked_for(monkeypatch):
    layer, x, lengths = GRU(5, 8).cuda(), X.cuda(), torch.tensor([1, 2, 3, 7], device="cuda")
    layer(x, lengths=lengths)
    monkeypatch.setenv("RNNKERN_CHECK", "1")
    with pytest.raises(ValueError, match="lengths: expected values from 0 to the number of time steps 6, got 7"):
        layer(x, lengths=lengths)
