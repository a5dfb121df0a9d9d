"""What the adapters of layers with ``torch.nn``'s interface share: one function per mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from suites import Data


def data_of(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def flat(raw: tuple) -> list[Tensor]:
    """The tensors of ``(output, state)``."""
    output, state = raw
    return [data_of(output), *(state if isinstance(state, tuple) else (state,))]


def inference(layer: nn.Module, data: Data, **options) -> Callable[[int], tuple]:
    inputs = [called for _, called in data.leaves()]
    count = len(inputs)

    def call(i: int) -> tuple:
        return layer(inputs[i % count], **options)

    call.results = flat
    return call


def training(layer: nn.Module, data: Data, **options) -> Callable[[int], list[Tensor]]:
    """Forward, and backward into the input and every weight."""
    leaves, weights, d_y = data.leaves(), list(layer.parameters()), data.d_y
    count = len(leaves)

    def call(i: int) -> list[Tensor]:
        leaf, called = leaves[i % count]
        y = data_of(layer(called, **options)[0])
        return [y.detach(), *torch.autograd.grad(y, [leaf, *weights], d_y)]

    return call


def step(function: Callable, inputs: list[Tensor], data: Data) -> Callable[[int], tuple]:
    """``function(input, state) -> (output, state)``."""
    count = len(inputs)
    state = data.state if len(data.state) > 1 else data.state[0]

    def call(i: int) -> tuple:
        return function(inputs[i % count], state)

    call.results = flat
    return call
