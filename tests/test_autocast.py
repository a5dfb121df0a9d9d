"""Layers and cells under autocast, on every device; GradScaler. On the CPU torch.nn refuses an LSTM in float16."""

import copy

import pytest
import torch

import rnnkern
from comparison import assert_close, outputs_and_gradients, pair, states, tensors_of
from layer_inputs import every_layer, packed, padded

both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


def in_dtype(hx, dtype):
    """States as leaves of another dtype."""
    if isinstance(hx, tuple):
        return tuple(in_dtype(state, dtype) for state in hx)
    return hx.detach().to(dtype).requires_grad_()


def assert_equal_bits(found, expected):
    found, expected = tensors_of(found), tensors_of(expected)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("state", ["none", "float32", "autocast's", "one of each"])
@both_dtypes
@every_layer
def test_results_of_a_layer_have_autocasts_dtype_whatever_the_states(name, dtype, state, device):
    layer, _ = pair(name, 5, 8, 2, dtype=torch.float32, device=device)
    low = copy.deepcopy(layer).to(dtype)
    x, full = padded(torch.float32, device), states(layer, 4, torch.float32, device)
    hx = {"none": None, "float32": full, "autocast's": in_dtype(full, dtype), "one of each": full}[state]
    if state == "one of each" and name == "LSTM":
        hx = (full[0], full[1].to(dtype))
    with torch.autocast(device, dtype):
        found = layer(x, hx, return_state_sequence=True)
    assert all(tensor.dtype == dtype for tensor in tensors_of(found))
    expected = low(x.to(dtype), None if hx is None else in_dtype(hx, dtype), return_state_sequence=True)
    assert_equal_bits(found, expected)


@both_dtypes
@every_layer
def test_schedules_work_under_autocast(name, dtype, device):
    layer, _ = pair(name, 5, 8, bidirectional=True, dtype=torch.float32, device=device)
    low = copy.deepcopy(layer).to(dtype)
    x, sequences = padded(torch.float32, device), packed(torch.float32, device)
    schedule = {"lengths": torch.tensor([3, 0, 6, 1]), "reset_mask": torch.rand(6, 4, device=device) < 0.3}
    with torch.autocast(device, dtype):
        found = layer(x, **schedule), layer(sequences)
    expected = low(x.to(dtype), **schedule), low(sequences._replace(data=sequences.data.to(dtype)))
    assert_equal_bits(found, expected)


@both_dtypes
@every_layer
def test_gradients_have_the_parameters_dtype(name, dtype, device):
    layer, _ = pair(name, 5, 8, 2, dtype=torch.float32, device=device)
    low = copy.deepcopy(layer).to(dtype)
    x, hx = padded(torch.float32, device).requires_grad_(), states(layer, 4, torch.float32, device)

    class Autocast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *arguments):
            with torch.autocast(device, dtype):
                return self.layer(*arguments)

    _, gradients = outputs_and_gradients(Autocast(), x, hx)
    _, expected = outputs_and_gradients(low, in_dtype(x, dtype), in_dtype(hx, dtype))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert_equal_bits([gradient.to(dtype) for gradient in gradients], expected)


@both_dtypes
@pytest.mark.parametrize("name", CELLS)
def test_cells_and_steps_follow_autocast(name, dtype, device):
    cell = getattr(rnnkern, name)(5, 8, device=device)
    layer = getattr(rnnkern, name.removesuffix("Cell"))(5, 8, device=device)
    x, h, c = (torch.randn(4, size, device=device) for size in (5, 8, 8))
    hx = (h, c) if name == "LSTMCell" else h
    low = copy.deepcopy(cell).to(dtype)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            expected = low(x.to(dtype), in_dtype(hx, dtype))
            with torch.autocast(device, dtype):
                assert_equal_bits(cell(x, hx), expected)
                assert_equal_bits(cell(x, in_dtype(hx, dtype)), expected)
                stepped = layer.step(x)
            assert all(tensor.dtype == dtype for tensor in tensors_of(stepped))
    with torch.autocast(device, dtype):
        sum(t.float().sum() for t in tensors_of(cell(x, hx))).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in cell.parameters())


@every_layer
def test_double_stays_double_and_autocast_can_be_left(name, device):
    layer, theirs = pair(name, 5, 8, device=device)
    x = padded(device=device)
    with torch.autocast(device, torch.bfloat16):
        assert_close(layer(x), theirs(x))
        with torch.autocast(device, enabled=False):
            assert layer.float()(x.float())[0].dtype == torch.float32


def test_a_state_of_another_dtype_is_refused_outside_autocast(device):
    layer, _ = pair("LSTM", 5, 8, dtype=torch.float32, device=device)
    hx = states(layer, 4, torch.bfloat16, device)
    with pytest.raises(ValueError, match="hx must have the input's dtype: expected torch.float32, got torch.bfloat16"):
        layer(padded(torch.float32, device), hx)


@every_layer
def test_a_grad_scaler_trains_in_float16_and_skips_what_overflows(name, device):
    layer = getattr(rnnkern, name)(5, 8, 2, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**50)
    x, target = padded(torch.float32, device), 0.5 * padded(torch.float32, device, size=8).sin()

    def step():
        with torch.autocast(device, torch.float16):
            value = (layer(x)[0] - target).square().mean()
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return value.item()

    before = [parameter.detach().clone() for parameter in layer.parameters()]
    first = step()
    assert scaler.get_scale() == 2.0**49  # infinite gradients: no step was taken
    assert_equal_bits(list(layer.parameters()), before)
    values = [step() for _ in range(120)]
    assert scaler.get_scale() < 2.0**30
    assert values[-1] < 0.8 * first
