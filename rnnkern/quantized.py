"""`quantize_dynamic`: a model whose recurrent layers hold int8 weights, for inference on the CPU."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkern import functional, int8, modules
from rnnkern.convert import M, as_ours, check_is_module, compiled_inside, other_meaning, plain_class
from rnnkern.direct import infer_step
from rnnkern.symbolic import node_of, traced


class QuantizedLayer(nn.Module):
    """A recurrent layer with int8 weights: the float layer's interface, in evaluation, float32 in and out.

    Made by `quantize_dynamic`. Its buffers are, for each weight of the float layer, the packed int8 tensor under the
    weight's name, its `..._scale` and its `..._sum` (see `rnnkern.int8`), and the biases; so `state_dict`, pickling and
    `deepcopy` work. A recurrent weight of a GRU with `reset_after=False` is in two: `weight_hh` of r and z,
    `weight_hn`. A call that needs a gradient raises RuntimeError, an input that is not float32 a TypeError. Dropout and
    the random masks never act.
    """

    def __init__(self, layer: modules.Recurrent) -> None:
        super().__init__()
        self.kind = next(cls.__name__ for cls in type(layer).__mro__ if cls in _KINDS)
        self._cell = layer._cell
        self.shown = layer.extra_repr()
        self.input_size, self.hidden_size, self.proj_size = layer.input_size, layer.hidden_size, layer.proj_size
        self.num_layers, self.bidirectional, self.heads = layer.num_layers, bool(layer.bidirectional), layer.heads
        self.bias, self.batch_first, self.zoneout = bool(layer.bias), layer.batch_first, layer.zoneout
        self.mode, self.dropout = layer.mode, layer.dropout  # to be read, as the float layer's
        directions = ("", "_reverse") if self.bidirectional else ("",)
        suffixes = [f"l{index}{direction}" for index in range(self.num_layers) for direction in directions]
        weights = layer._weights()
        count = len(weights) // len(suffixes)
        # The buffers in the operator's order: packed weights, and biases.
        self.weight_names: list[str] = []
        self.bias_names: list[str] = []
        for index, suffix in enumerate(suffixes):
            own = weights[index * count : (index + 1) * count]
            for matrix, parts in int8.pack_direction(own, self._cell, self.heads).items():
                for part, tensor in zip(("", "_scale", "_sum"), parts, strict=True):
                    self.weight_names.append(f"weight_{matrix}_{suffix}{part}")
                    self.register_buffer(self.weight_names[-1], tensor)
            for side, bias in zip(("ih", "hh"), own[2:4], strict=True) if self.bias else ():
                self.bias_names.append(f"bias_{side}_{suffix}")
                self.register_buffer(self.bias_names[-1], bias.detach().clone())
        self.train(layer.training)

    def _weights(self) -> int8.Weights:
        """The weights as they are now."""
        buffers: dict[str, Any] = self._buffers
        packed, biases = ([buffers[name] for name in names] for names in (self.weight_names, self.bias_names))
        return int8.Weights(packed, biases, self.num_layers, self.input_size, self.hidden_size, self.proj_size)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | PackedSequence | None = None,
        return_state_sequence: bool = False,
    ) -> tuple[Any, ...]:
        """As `rnnkern.LSTM.forward`, on float32: `(output, hx)`, and the states after every step if asked for."""
        if traced(input) and (
            node := node_of(
                self, QuantizedLayer.forward, input, hx, lengths=lengths, reset_mask=reset_mask,
                return_state_sequence=return_state_sequence,
            )
        ) is not None:  # fmt: skip
            return node
        settings = functional.Settings(
            self._cell, self.num_layers, self.bidirectional, self.batch_first, zoneout=self.zoneout, heads=self.heads
        )
        return functional.run(settings, input, hx, self._weights(), lengths, reset_mask, return_state_sequence)

    def step(self, input_t: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One time step `[B, I]` or `[I]` of a stream: `(output_t, hx)`, equal to `forward` on one step."""
        result = infer_step(self, QuantizedLayer.forward, input_t, hx, self._weights())
        return modules.step_by_forward(self, input_t, hx) if result is None else result

    def extra_repr(self) -> str:
        return f"{self.shown}, weights=int8"

    def _get_name(self) -> str:
        return f"Quantized{self.kind}"

    def flatten_parameters(self) -> None:
        """Does nothing, as in the float layer."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            "torch.jit.script cannot take a layer of int8 weights, TorchScript has no operator for it: "
            "script to_torch() of the layer that it was made of"
        )


_KINDS = (modules.LSTM, modules.GRU, modules.RNN)


def quantize_dynamic(module: M) -> M:
    """A deep copy whose recurrent layers, ours and torch.nn's, hold int8 weights, for inference on the CPU.

    Every row of a weight gets its own scale; the input and the state are quantised at each step, each row of the batch
    by its own largest value. Biases, gates and states stay float32. The LSTM of `examples/char_lm.py` loses less than
    0.001 bits per character by it (1.990 before and after).

    What cannot be quantised (cells, subclasses, parameters that are not float32 on the CPU, layers with hooks) is left
    as it is and named by a UserWarning.

    Returns:
        the copy, a `QuantizedLayer` if `module` is a recurrent layer itself.
    """
    check_is_module(module)
    module = copy.deepcopy(module)
    reasons: list[str] = []
    wrapped = compiled_inside(module)
    for path, found in module.named_modules():
        if not isinstance(found, (nn.RNNBase, nn.RNNCellBase)):
            continue
        reason = "it is compiled; compile it after this" if found in wrapped else _why_not(found)
        if reason is None:  # whatever refers to the layer refers to what it becomes
            found.__dict__ = vars(QuantizedLayer(as_ours(found)))
            found.__class__ = QuantizedLayer  # type: ignore[assignment]
        else:
            reasons.append(f"{path or 'the module itself'} ({type(found).__name__}): {reason}")
    if reasons:
        warnings.warn("rnnkern.quantize_dynamic left as they are: " + "; ".join(reasons), UserWarning, stacklevel=2)
    return module


def _why_not(module: nn.Module) -> str | None:
    if isinstance(module, nn.RNNCellBase):
        return "cells keep their float weights, only layers hold int8 ones"
    if plain_class(module) not in (*_KINDS, nn.LSTM, nn.GRU, nn.RNN):
        return "a subclass with its own class"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would be lost"
    if reason := other_meaning(module):
        return reason
    for parameter in module.parameters():
        if parameter.dtype != torch.float32 or not parameter.is_cpu:
            return f"its parameters are of {parameter.dtype} on {parameter.device}, expected torch.float32 on the CPU"
        if parameter.dim() > 1 and parameter.shape[1] > int8.MOST_COLUMNS:
            return f"int8 weights reach to {int8.MOST_COLUMNS} columns, got {parameter.shape[1]}"
    return None
