"""This library's layers under CUDA graphs, as those of ``torch.nn`` are in ``torch_cuda_graph``."""

from __future__ import annotations

from collections.abc import Callable

from suites import Data

from . import rnnkern_layer, torch_cuda_graph

NAME = "rnnkern CUDA graph"
INSTALL = torch_cuda_graph.INSTALL
load = torch_cuda_graph.load


def build(data: Data) -> Callable[[int], object]:
    return torch_cuda_graph.graphed(NAME, rnnkern_layer.make_layer(data), data)
