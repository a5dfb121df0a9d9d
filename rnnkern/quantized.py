"""`quantize_dynamic`: a model whose recurrent layers hold int8 weights, for inference on the CPU."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkern import cells, functional, int8, modules
from rnnkern.convert import as_ours, plain_class, replace


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
        self.cell = layer.cell
        self.shown = layer.extra_repr()
        self.input_size, self.hidden_size, self.proj_size = layer.input_size, layer.hidden_size, layer.proj_size
        self.num_layers, self.bidirectional, self.heads = layer.num_layers, bool(layer.bidirectional), layer.heads
        self.bias, self.batch_first, self.zoneout = bool(layer.bias), layer.batch_first, layer.zoneout
        weights = layer.weights()
        count = len(weights) // len(self._suffixes())
        for index, suffix in enumerate(self._suffixes()):
            own = weights[index * count : (index + 1) * count]
            packed = int8.pack_direction(own, self.cell, self.heads)
            self.matrices = tuple(packed)
            for matrix, parts in packed.items():
                for part, tensor in zip(_PARTS, parts, strict=True):
                    self.register_buffer(f"weight_{matrix}_{suffix}{part}", tensor)
            for place in range(2 if self.bias else 0):
                self.register_buffer(f"bias_{_BIASES[place]}_{suffix}", own[2 + place].detach().clone())
        self.train(layer.training)

    def _suffixes(self) -> list[str]:
        """The ends of the parameters' names, one a layer and direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def weights(self) -> int8.Weights:
        """The weights as they are now."""
        directions = 2 if self.bidirectional else 1
        suffixes = self._suffixes()
        layers = []
        for index in range(0, len(suffixes), directions):
            own = suffixes[index : index + directions]
            names = [f"weight_{matrix}_{suffix}{part}" for suffix in own for matrix in self.matrices for part in _PARTS]
            biases = [f"bias_{bias}_{suffix}" for suffix in own for bias in _BIASES] if self.bias else []
            layers.append(([getattr(self, name) for name in names], [getattr(self, name) for name in biases]))
        return int8.Weights(layers, self.input_size, self.hidden_size, self.proj_size or self.hidden_size)

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
        return functional.run(
            self.cell, input, hx, self.weights(), self.num_layers, self.bidirectional, self.batch_first, 0.0, 0.0,
            self.zoneout, False, self.heads, False, lengths, reset_mask, return_state_sequence,
        )  # fmt: skip

    def step(self, input_t: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One time step `[B, I]` or `[I]` of a stream: `(output_t, hx)`, equal to `forward` on one step."""
        return modules.step_by_forward(self, input_t, hx)

    def extra_repr(self) -> str:
        return f"{self.shown}, weights=int8"

    def _get_name(self) -> str:
        return f"Quantized{self.kind}"

    def flatten_parameters(self) -> None:
        """Does nothing, as in the float layer."""


_PARTS = ("", "_scale", "_sum")
_BIASES = ("ih", "hh")
_KINDS = (modules.LSTM, modules.GRU, modules.RNN)


def quantize_dynamic(module: nn.Module) -> nn.Module:
    """A deep copy whose recurrent layers, ours and torch.nn's, hold int8 weights, for inference on the CPU.

    Every row of a weight gets its own scale; the input and the state are quantised at each step, each row of the batch
    by its own largest value. Biases, gates and states stay float32. On `examples/char_lm.py` BITS.

    What cannot be quantised (cells, subclasses, parameters that are not float32 on the CPU, layers with hooks) is left
    as it is and named by a UserWarning.

    Returns:
        the copy, or the `QuantizedLayer` that replaces it if it is a recurrent layer itself.
    """
    module = copy.deepcopy(module)
    reasons: list[str] = []
    swapped: dict[nn.Module, nn.Module] = {}
    for path, found in module.named_modules():
        if not isinstance(found, (nn.RNNBase, nn.RNNCellBase)):
            continue
        reason = _why_not(found)
        if reason is None:
            swapped[found] = QuantizedLayer(as_ours(found))
        else:
            reasons.append(f"{path or 'the module itself'} ({type(found).__name__}): {reason}")
    replace(module, swapped)
    if reasons:
        warnings.warn("rnnkern.quantize_dynamic left as they are: " + "; ".join(reasons), UserWarning, stacklevel=2)
    return swapped.get(module, module)


def _why_not(module: nn.Module) -> str | None:
    if isinstance(module, (nn.RNNCellBase, cells.RecurrentCell)):
        return "cells keep their float weights, only layers hold int8 ones"
    if plain_class(module) not in (*_KINDS, nn.LSTM, nn.GRU, nn.RNN):
        return "a subclass with its own class"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would be lost"
    for parameter in module.parameters():
        if parameter.dtype != torch.float32 or not parameter.is_cpu:
            return f"its parameters are of {parameter.dtype} on {parameter.device}, expected torch.float32 on the CPU"
        if parameter.dim() > 1 and parameter.shape[1] > int8.MOST_COLUMNS:
            return f"int8 weights reach to {int8.MOST_COLUMNS} columns, got {parameter.shape[1]}"
    return None
