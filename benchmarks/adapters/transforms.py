"""An ensemble and per-sample gradients: by `torch.func`'s transforms, and by the loops that one writes without them.

Both give, of an ensemble, ``[y]`` or in training ``[y, d_x, *d_weights]``, and per sample ``d_weights``, all stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from suites import Data

Function = Callable[[Tensor, Sequence[Tensor]], Tensor]  # (x, weights) -> y
Call = Callable[[int], Any]


class Loop:
    """Layer after layer, or sample after sample; ``results`` stacks what the calls gave."""

    def __init__(self, functions: Sequence[Function], weights: Sequence[Sequence[Tensor]], data: Data):
        self.functions, self.weights, self.data = functions, weights, data
        self.inputs = [leaf for leaf, _ in data.leaves()]

    def __call__(self, i: int) -> list[list[Tensor]]:
        data, x = self.data, self.inputs[i % len(self.inputs)]
        if data.problem.mode == "per-sample":
            function, weights = self.functions[0], self.weights[0]
            return [
                list(torch.autograd.grad(function(x[:, b : b + 1], weights), weights, data.d_y[:, b : b + 1]))
                for b in range(data.problem.batch)
            ]
        ys = [function(x, weights) for function, weights in zip(self.functions, self.weights, strict=True)]
        if not data.problem.differentiates:
            return [[y] for y in ys]
        leaves = [weight for weights in self.weights for weight in weights]
        d_x, *d_weights = torch.autograd.grad(ys, [x, *leaves], [data.d_y] * len(ys))
        count = len(self.weights[0])
        self.d_x = d_x
        return [[y.detach(), *d_weights[n * count : (n + 1) * count]] for n, y in enumerate(ys)]

    def results(self, raw: list[list[Tensor]]) -> list[Tensor]:
        stacked = [torch.stack(of_each) for of_each in zip(*raw, strict=True)]
        return [stacked[0], self.d_x, *stacked[1:]] if self.data.problem.mode == "training" else stacked


def loop(layers: Sequence[nn.Module], data: Data) -> Loop:
    return Loop([lambda x, _, layer=layer: layer(x)[0] for layer in layers],
                [list(layer.parameters()) for layer in layers], data)  # fmt: skip


def transformed(layers: Sequence[nn.Module], data: Data) -> Call:
    inputs, d_y, problem = [leaf for leaf, _ in data.leaves()], data.d_y, data.problem
    parameters, buffers = stack_module_state(list(layers))
    layer = layers[0]

    def output(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, (values, {name: b[0] for name, b in buffers.items()}), (x,))[0]

    if problem.mode == "per-sample":
        single = {name: value.detach() for name, value in layer.named_parameters()}
        gradients = vmap(grad(lambda values, x, d: (output(values, x) * d).sum()), (None, 1, 1))
        return lambda i: list(gradients(single, inputs[i % len(inputs)], d_y).values())
    if not problem.differentiates:
        return lambda i: [vmap(output, (0, None))(parameters, inputs[i % len(inputs)])]
    d_ys = d_y.expand(problem.members, *d_y.shape)

    def training(i: int) -> list[Tensor]:
        x = inputs[i % len(inputs)]
        y = vmap(output, (0, None))(parameters, x)
        return [y.detach(), *torch.autograd.grad(y, [x, *parameters.values()], d_ys)]

    return training
