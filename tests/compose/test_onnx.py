"""`to_torch()` leads to ONNX: torch.onnx exports it by either of its exporters, and ONNX Runtime gives the same.

ONNX's LSTM has no projection: one exporter refuses it, the other writes what the runtime refuses.
"""

import onnxruntime
import pytest
import torch

import rnnkern
from comparison import assert_close
from layer_inputs import CASES, padded


def of_cases(cases):
    return pytest.mark.parametrize(("name", "variant"), cases, ids=lambda value: str(value).replace(" ", ""))


def export(layer, file, **keywords):
    x = padded(torch.float32, batch_first=layer.batch_first)
    torch.onnx.export(layer.to_torch(), (x,), file, input_names=["input"], **keywords)


def assert_runtime_gives_the_same(layer, file, sizes):
    runtime = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for steps, batch in sizes:
        x = padded(torch.float32, steps=steps, batch=batch, batch_first=layer.batch_first)
        found = [torch.from_numpy(array) for array in runtime.run(None, {"input": x.numpy()})]
        with torch.no_grad():
            assert_close(found, layer(x), torch.float32)


@of_cases([(name, variant) for name, variant in CASES if "proj_size" not in variant])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_torchscript_exporter_leaves_both_sizes_open(name, variant, tmp_path):
    layer = getattr(rnnkern, name)(5, 8, **variant).eval()
    file = str(tmp_path / "layer.onnx")
    export(layer, file, dynamo=False, dynamic_axes={"input": [0, 1]})
    assert_runtime_gives_the_same(layer, file, [(6, 4), (9, 3)])


# This one unrolls torch.nn's layers over time, so that the number of steps is fixed.
@of_cases([("LSTM", {"bidirectional": True}), ("GRU", {"batch_first": True}), ("RNN", {"nonlinearity": "relu"})])
def test_the_dynamo_exporter_leaves_the_batch_open(name, variant, tmp_path):
    layer = getattr(rnnkern, name)(5, 8, **variant).eval()
    file = str(tmp_path / "layer.onnx")
    batch = {0 if layer.batch_first else 1: torch.export.Dim.DYNAMIC}
    export(layer, file, dynamo=True, dynamic_shapes={"input": batch}, verbose=False)
    assert_runtime_gives_the_same(layer, file, [(6, 4), (6, 3)])
