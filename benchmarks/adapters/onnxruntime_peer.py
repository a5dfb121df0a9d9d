"""ONNX Runtime on the CPU. The graph is built node by node from the weights, so that no exporter has a say.

ONNX orders the gates of an LSTM i, o, f, c and those of a GRU z, r, h; ``linear_before_reset`` is PyTorch's GRU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from suites import CLASSES, Data

from . import refuse

NAME = "onnxruntime"
INSTALL = "pip install onnx onnxruntime"
GATE_ORDER = {nn.LSTM: [0, 3, 1, 2], nn.GRU: [1, 0, 2], nn.RNN: [0]}  # of torch's gates
OPERATOR = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"}


def load() -> None:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401


def build(data: Data) -> Callable[[int], list[Tensor]]:
    import onnxruntime

    problem = data.problem
    reasons = {
        "inference alone": problem.mode == "training",
        "float32 alone": problem.dtype != "float32",
        "measured on the CPU alone": problem.device != "cpu",
        "no projection": problem.projection > 0,
        "no reset mask": problem.reset > 0,
    }
    refuse(NAME, reasons)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Its threads wait for the next call as long as the others' do, and not 50 to 90 ms, which a sample would wait for.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
    model = onnx_model(data.layer, with_state=bool(data.state), with_lengths=problem.packed)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    outputs, given = outputs_of(data), dict(zip(["h_0", "c_0"], data.state, strict=False))
    if problem.packed:  # they stay padded here: behind a length it multiplies all the same, and skips the gates
        given["lengths"] = data.lengths.int()
    bindings = []
    for x in data.inputs:
        binding = session.io_binding()
        for name, tensor in {"x": x, **given}.items():
            dtype = "int32" if name == "lengths" else "float32"
            binding.bind_input(name, "cpu", 0, dtype, tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, "cpu", 0, "float32", tuple(tensor.shape), tensor.data_ptr())
        bindings.append(binding)
    count, run, kept = len(bindings), session.run_with_iobinding, list(outputs.values())

    def call(i: int) -> list[Tensor]:
        run(bindings[i % count])
        return kept

    call.inputs = (data.inputs, given)  # the bindings hold bare pointers into these
    if problem.packed:
        call.results = lambda raw: [data.packed(raw[0].view(problem.steps, problem.batch, -1)).data, *raw[1:]]
    return call


def outputs_of(data: Data) -> dict[str, Tensor]:
    """Buffers for the model's results."""
    layer, problem = data.layer, data.problem
    directions = 2 if layer.bidirectional else 1
    rows = layer.num_layers * directions
    merged = [problem.steps, problem.batch, directions * problem.hidden]
    outputs = {
        "y": torch.empty(merged if layer.bidirectional else [problem.steps, 1, *merged[1:]]),
        "h_n": torch.empty(rows, problem.batch, problem.hidden),
    }
    if isinstance(layer, nn.LSTM):
        outputs["c_n"] = torch.empty(rows, problem.batch, problem.hidden)
    return outputs


def onnx_model(layer: nn.RNNBase, with_state: bool, with_lengths: bool = False):
    """``x [T, B, I]`` (and ``h_0``, ``c_0``, ``lengths [B]``) → ``y``, ``h_n`` and, for an LSTM, ``c_n``.

    ``y`` is ``[T, B, 2*H]`` for both directions; for one it stays as the operator gives it, ``[T, 1, B, H]``, since
    moving and renaming its axes would copy it.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    kind = next(cls for cls in CLASSES.values() if isinstance(layer, cls))
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    states = ["h", "c"] if kind is nn.LSTM else ["h"]
    nodes, constants = [], []

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def weight(name: str, k: int) -> Tensor:
        """One parameter of all directions in ONNX's gate order, ``[D, G*H, …]``."""
        tensors = [getattr(layer, f"{name}_l{k}{suffix}").detach() for suffix in directions]
        blocks = [torch.cat([t.chunk(len(GATE_ORDER[kind]))[g] for g in GATE_ORDER[kind]]) for t in tensors]
        return torch.stack(blocks)

    def node(operator: str, inputs: list[str], outputs: list[str], **attributes) -> None:
        nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    attributes = {"hidden_size": layer.hidden_size, "direction": "bidirectional" if layer.bidirectional else "forward"}
    if kind is nn.GRU:
        attributes["linear_before_reset"] = 1
    if with_state and layer.num_layers > 1:
        sizes = constant("sizes", torch.full((layer.num_layers,), len(directions)))
        for s in states:
            node("Split", [f"{s}_0", sizes], [f"{s}_0_{k}" for k in range(layer.num_layers)], axis=0)
    if layer.bidirectional:
        merged = constant("merged", torch.tensor([0, 0, -1]))
    elif layer.num_layers > 1:
        axis = constant("axis", torch.tensor([1]))
    x = "x"
    for k in range(layer.num_layers):
        last = k == layer.num_layers - 1
        y = "y" if last else f"x_{k + 1}"
        bias = torch.cat([weight("bias_ih", k), weight("bias_hh", k)], 1)
        inputs = [x, constant(f"w_{k}", weight("weight_ih", k)), constant(f"r_{k}", weight("weight_hh", k))]
        inputs += [constant(f"b_{k}", bias), "lengths" if with_lengths else ""]
        if with_state:
            inputs += [f"{s}_0_{k}" if layer.num_layers > 1 else f"{s}_0" for s in states]
        finals = [f"{s}_n_{k}" if layer.num_layers > 1 else f"{s}_n" for s in states]
        result = f"y_{k}" if layer.bidirectional or not last else y
        node(OPERATOR[kind], inputs, [result, *finals], **attributes)
        if layer.bidirectional:  # [T, D, B, H] → [T, B, D*H]
            node("Transpose", [result], [f"t_{k}"], perm=[0, 2, 1, 3])
            node("Reshape", [f"t_{k}", merged], [y])
        elif not last:
            node("Squeeze", [result, axis], [y])
        x = y
    if layer.num_layers > 1:
        for s in states:
            node("Concat", [f"{s}_n_{k}" for k in range(layer.num_layers)], [f"{s}_n"], axis=0)

    def value(name: str, *shape: int | str, element=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, element, shape)

    rows = layer.num_layers * len(directions)
    state_shape = (rows, "B", layer.hidden_size)
    inputs = [value("x", "T", "B", layer.input_size)]
    if with_state:
        inputs += [value(f"{s}_0", *state_shape) for s in states]
    if with_lengths:
        inputs.append(value("lengths", "B", element=TensorProto.INT32))
    width = len(directions) * layer.hidden_size
    results = [value("y", "T", "B", width) if layer.bidirectional else value("y", "T", 1, "B", width)]
    results += [value(f"{s}_n", *state_shape) for s in states]
    graph = helper.make_graph(nodes, "layer", inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model
