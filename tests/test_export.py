"""Layers as programs: torch.export with T and B free, saved, loaded and run; and compiled ahead of time."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkern
from comparison import assert_close, outputs_and_gradients, pair, states, tensors_of
from helpers import Layer, inputs_of, problem, two_cells
from layer_inputs import every_layer, padded

TIME, BATCH = torch.export.Dim("time", min=2), torch.export.Dim("batch", min=2)
SIZES = [(2, 2), (9, 3), (4, 6)]


class Scheduled(nn.Module):
    """A layer with everything that its call takes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, hx, lengths, reset_mask):
        return self.layer(x, hx, lengths=lengths, reset_mask=reset_mask, return_state_sequence=True)


def arguments_of(layer, steps, batch, device):
    lengths = torch.randint(0, steps + 1, (batch,), device=device)
    reset_mask = torch.rand(steps, batch, device=device) < 0.3
    hx = states(layer, batch, device=device, requires_grad=False)
    return padded(device=device, steps=steps, batch=batch), hx, lengths, reset_mask


def exported(name, strict, device):
    layer, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    module = Scheduled(layer)
    hx = ({1: BATCH}, {1: BATCH}) if name == "LSTM" else {1: BATCH}
    shapes = {"x": {0: TIME, 1: BATCH}, "hx": hx, "lengths": {0: BATCH}, "reset_mask": {0: TIME, 1: BATCH}}
    arguments = arguments_of(layer, 7, 3, device)
    return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=strict), module


@pytest.mark.parametrize("strict", [False, True])
@two_cells
def test_operators_export_with_dynamic_shapes(cell, strict, device):
    one = problem(cell, device=device)
    module, inputs = Layer(one), inputs_of(one)
    shapes = tuple({0: TIME, 1: BATCH} if place == 0 else {1: BATCH} for place in range(len(inputs)))
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
    for run in (program.module(), program.run_decompositions().module()):
        others = inputs_of(problem(cell, device=device, steps=8, batch=3))
        assert_close(run(*others), module(*others))


@pytest.mark.parametrize("strict", [False, True])
@every_layer
def test_an_exported_layer_is_saved_loaded_and_run_at_every_size(name, strict, device):
    program, module = exported(name, strict, device)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for steps, batch in SIZES:
        arguments = arguments_of(module.layer, steps, batch, device)
        assert_close(loaded(*arguments), module(*arguments))


@every_layer
def test_an_exported_layer_trains(name, device):
    program, module = exported(name, False, device)
    x, *rest = arguments_of(module.layer, 9, 3, device)
    found = outputs_and_gradients(program.module(), x.requires_grad_(), *rest)
    assert_close(found, outputs_and_gradients(module, x, *rest))


@pytest.mark.parametrize("strict", [False, True])
@every_layer
def test_a_packed_sequence_exports_without_indices_and_states(name, strict, device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(rnnkern, name)(5, 8, dtype=torch.float64, device=device)

        def forward(self, data, batch_sizes):
            y, hx = self.layer(PackedSequence(data, batch_sizes))
            return y.data, hx

    model, (data, batch_sizes, *_) = Model(), pack_padded_sequence(padded(device=device), [6, 4, 3, 1])
    program = torch.export.export(model, (data, batch_sizes), strict=strict)
    assert_close(tensors_of(program.module()(data, batch_sizes)), tensors_of(model(data, batch_sizes)))


class Tagger(nn.Module):
    """All three layers, one after the other."""

    def __init__(self, device):
        super().__init__()
        self.lstm = rnnkern.LSTM(5, 8, 2, bidirectional=True, device=device)
        self.gru = rnnkern.GRU(16, 8, device=device)
        self.rnn = rnnkern.RNN(8, 4, device=device)

    def forward(self, x, lengths, reset_mask):
        y, _ = self.lstm(x, lengths=lengths, reset_mask=reset_mask)
        y, _ = self.gru(y, lengths=lengths)
        return self.rnn(y, reset_mask=reset_mask)


def test_a_package_compiled_ahead_of_time_runs_from_python(tmp_path, device):
    module = Tagger(device).eval()

    def arguments(steps, batch):
        lengths = torch.randint(0, steps + 1, (batch,), device=device)
        return padded(torch.float32, device, steps, batch), lengths, torch.rand(steps, batch, device=device) < 0.3

    shapes = ({0: TIME, 1: BATCH}, {0: BATCH}, {0: TIME, 1: BATCH})
    with torch.no_grad():
        program = torch.export.export(module, arguments(7, 3), dynamic_shapes=shapes)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "tagger.pt2"))
        package = torch._inductor.aoti_load_package(path)
        for steps, batch in SIZES:
            inputs = arguments(steps, batch)
            assert_close(package(*inputs), module(*inputs), torch.float32)
