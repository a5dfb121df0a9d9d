"""What the layers and cells refuse: one clear error that names the argument, what was expected and what came.

Messages are torch.nn's where torch.nn has one. Sizes of a module's own parameters and the values of tensors are checked
by the operator: see functional.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkern import _C
from rnnkern.reference import GATES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Devices with kernels; "meta" computes shapes alone.
BACKENDS = ("cpu", "meta") if _C.build_info()["cuda"] is None else ("cpu", "cuda", "meta")


def cell_name(cell: str) -> str:
    return "LSTM" if cell == "lstm" else "GRU" if cell.startswith("gru") else "RNN"


def rnn_cell_name(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu", "sigmoid"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'.")
    return "rnn_" + nonlinearity


def check_probability(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], got {value!r}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} should be a number, got: {type(value).__name__}")


def check_heads(heads: int, hidden_size: int, projection: bool) -> None:
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise TypeError(f"heads should be of type int, got: {type(heads).__name__}")
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    if heads > 1 and projection:
        raise ValueError(f"heads={heads} cannot be combined with proj_size")
    if hidden_size % heads:
        raise ValueError(f"hidden_size must be divisible by heads, got hidden_size={hidden_size} and heads={heads}")


def check_function_arguments(
    cell: str,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    heads: int,
    dropout: float,
    recurrent_dropout: float,
    zoneout: float,
) -> None:
    """Options, and the number and the sizes of weights that do not come from a module."""
    check_probability("dropout", dropout)
    check_probability("recurrent_dropout", recurrent_dropout)
    check_probability("zoneout", zoneout)
    if not isinstance(num_layers, int):
        raise TypeError(f"num_layers should be of type int, got: {type(num_layers).__name__}")
    if num_layers < 1:
        raise ValueError("num_layers must be greater than zero")
    directions = 2 if bidirectional else 1
    count, rest = divmod(len(weights), num_layers * directions)
    counts = (2, 3, 4, 5) if cell == "lstm" else (2, 4)
    if rest or count not in counts:
        raise ValueError(
            f"weights: expected {', '.join(map(str, counts[:-1]))} or {counts[-1]} a layer and direction, "
            f"got {len(weights)} for {num_layers} x {directions}"
        )
    for index, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{index}]: expected a tensor, got {type(weight).__name__}")
        if index % count < 2 and weight.dim() != 2:
            raise ValueError(f"weights[{index}]: expected 2 dimensions, got {list(weight.shape)}")
    gates = GATES[cell]
    rows, input_size = weights[0].shape
    hidden, projection = rows // gates, count % 2 == 1
    if rows % gates or rows == 0:
        raise ValueError(f"weights[0]: expected {gates} * hidden_size rows, got {rows}")
    check_heads(heads, hidden, projection)
    width = weights[1].shape[1] if projection else hidden
    for index, weight in enumerate(weights):
        size = input_size if index < count * directions else width * directions
        expected: tuple[int, ...] = ((rows, size), (rows, width // heads), (rows,), (rows,))[index % count % 4]
        if projection and index % count == count - 1:
            expected = (width, hidden)
        if weight.shape != expected:
            raise ValueError(f"weights[{index}]: expected size {list(expected)}, got {list(weight.shape)}")


def check_device(x: Tensor, tensor: Tensor, what: str) -> None:
    if tensor.device != x.device:
        raise RuntimeError(
            f"Input and {what} tensors are not at the same device, "
            f"found input tensor at {x.device} and {what} tensor at {tensor.device}"
        )


def check_weights(x: Tensor, weights: Sequence[Tensor]) -> None:
    """Dtypes and devices; the backend."""
    dtype, device = x.dtype, x.device
    try:
        for weight in weights:
            if weight.dtype != dtype or weight.device != device:
                _refuse_weights(x, weights)
    except AttributeError:
        kinds = ", ".join(type(weight).__name__ for weight in weights)
        raise TypeError(f"all parameters must be tensors, got {kinds}") from None
    if x.layout != torch.strided:
        raise TypeError(f"input must be a dense tensor, got one of layout {x.layout}: input.to_dense()")
    if dtype not in DTYPES:
        raise TypeError(f"rnnkern computes in float64, float32, bfloat16 and float16, got parameters of {dtype}")
    if not x.is_cpu and device.type not in BACKENDS:
        raise no_backend(device)


def no_backend(device: torch.device) -> RuntimeError:
    return RuntimeError(
        f"rnnkern has no kernels for device '{device}' in this build (only for {', '.join(BACKENDS[:-1])}); "
        "layer.to_torch() gives the equal torch.nn layer"
    )


def _refuse_weights(x: Tensor, weights: Sequence[Tensor]) -> NoReturn:
    dtype = weights[0].dtype
    if x.dtype != dtype:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
        )
    for weight in weights:
        if weight.dtype != dtype:
            raise TypeError(f"all parameters must have one dtype, got {dtype} and {weight.dtype}")
        check_device(x, weight, "parameter")
    raise AssertionError("called without a mismatch")


def lstm_states(hx: Any, name: str) -> tuple[Tensor, Tensor]:
    """The two states that an LSTM was given."""
    if isinstance(hx, Tensor):
        raise TypeError(f"{name}: hx must be the pair (h_0, c_0), got one tensor of size {list(hx.shape)}")
    if not hasattr(hx, "__len__"):
        raise TypeError(f"{name}: hx must be the pair (h_0, c_0), got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"{name} expects two hidden states, got {len(hx)}")
    h, c = hx
    if not (isinstance(h, Tensor) and isinstance(c, Tensor)):
        raise TypeError(f"{name}: hx must be a pair of tensors, got {type(h).__name__} and {type(c).__name__}")
    return h, c


def initial_states(hx: Any, cell: str) -> tuple[Tensor | None, Tensor | None]:
    """`h_0` and, of an LSTM, `c_0`; None where none were given."""
    if hx is None:
        return None, None
    return lstm_states(hx, cell) if cell == "lstm" else (hx, None)


def check_state_like(x: Tensor, state: Tensor) -> None:
    """The device and the dtype of a state."""
    check_device(x, state, "hidden")
    if state.dtype != x.dtype:
        raise ValueError(f"hx must have the input's dtype: expected {x.dtype}, got {state.dtype}")


def checked_state(x: Tensor, state: Tensor, expected: tuple[int, int, int], what: str, order: Tensor | None) -> Tensor:
    if state.shape != expected:
        raise RuntimeError(f"Expected {what} {expected}, got {list(state.shape)}")
    check_state_like(x, state)
    return state if order is None else state.index_select(1, order)


def checked_lengths(lengths: Tensor, x: Tensor, batched: bool) -> Tensor:
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be an integer tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be an integer tensor, got {lengths.dtype}")
    if lengths.dim() != batched or (batched and lengths.shape[0] != x.shape[1]):
        expected = [x.shape[1]] if batched else []
        raise ValueError(f"lengths must have one entry a sequence: expected size {expected}, got {list(lengths.shape)}")
    if lengths.is_cpu and x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"lengths on the CPU cannot be captured in a CUDA graph: give them on {x.device}")
    if not lengths.is_cpu and lengths.device != x.device:
        lengths = lengths.to(x.device)
    return lengths.reshape(-1).to(torch.int64)


def _check_mask(mask: Tensor, x: Tensor, expected: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"reset_mask must be of torch.bool, got {mask.dtype}")
    if mask.shape != expected:
        raise ValueError(
            f"reset_mask must have an entry a step: expected size {list(expected)}, got {list(mask.shape)}"
        )
    check_device(x, mask, "reset_mask")


def checked_reset_mask(mask: Tensor | PackedSequence, x: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """As `[T, B]`."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"reset_mask must be a bool tensor as the input is a tensor, got {type(mask).__name__}")
    steps, batch = x.shape[:2]
    _check_mask(mask, x, (steps,) if not batched else (batch, steps) if batch_first else (steps, batch))
    return mask.unsqueeze(1) if not batched else mask.t() if batch_first else mask


def _readable(tensor: Tensor) -> bool:
    """Whether values may be read: those on a GPU would make the processor wait for it."""
    return tensor.is_cpu or os.environ.get("RNNKERN_CHECK") == "1"


def checked_packed_reset_mask(mask: Tensor | PackedSequence, input: PackedSequence) -> Tensor:
    """As `[rows]`."""
    if not isinstance(mask, PackedSequence):
        raise TypeError(
            f"reset_mask must be a PackedSequence of bools as the input is a PackedSequence, got {type(mask).__name__}"
        )
    _check_mask(mask.data, input.data, tuple(input.data.shape[:1]))
    if not torch.compiler.is_compiling():
        if not torch.equal(mask.batch_sizes, input.batch_sizes):
            raise ValueError("reset_mask must have the input's batch sizes")
        one, other = mask.sorted_indices, input.sorted_indices
        if one is not None and other is not None and _readable(one) and not torch.equal(one, other):
            raise ValueError("reset_mask must have the input's order of sequences (sorted_indices)")
    return mask.data
