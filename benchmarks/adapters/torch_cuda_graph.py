"""``torch.nn``'s layers (cuDNN) under CUDA graphs: every call replays a graph on an input that is copied into it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from suites import Data

from . import layer, refuse

NAME = "torch CUDA graph"
INSTALL = "pip install torch, its CUDA build"


def load() -> None:
    if not torch.backends.cuda.is_built():
        raise ImportError("this torch is built without CUDA")


def build(data: Data) -> Callable[[int], object]:
    return graphed(NAME, data.layer, data)


def graphed(name: str, theirs: nn.Module, data: Data) -> Callable[[int], object]:
    """The layer's calls as replays of a graph."""
    problem = data.problem
    reasons = {
        "on CUDA alone": torch.device(problem.device).type != "cuda",
        "no packed sequences": problem.packed,  # their batch sizes lie on the CPU
        "no reset mask": problem.reset > 0,
    }
    refuse(name, reasons)
    if problem.mode == "training":
        sample = torch.zeros_like(data.inputs[0], requires_grad=True)
        own = copy.deepcopy(theirs)  # it is changed in place, and the layer itself is another side
        own.flatten_parameters()  # or cuDNN copies its weights in every call
        return layer.training(torch.cuda.make_graphed_callables(own, (sample,)), data)
    return replay(theirs, data)


def replay(theirs: nn.Module, data: Data) -> Callable[[int], list[Tensor]]:
    inputs, x = data.inputs, data.inputs[0].clone()
    state = data.state if len(data.state) > 1 else (data.state or (None,))[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is allocated once is allocated before the capture
                theirs(x, state)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            results = layer.flat(theirs(x, state))

    def call(i: int) -> list[Tensor]:
        x.copy_(inputs[i % len(inputs)])
        graph.replay()
        return results

    return call
