"""This library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from suites import Data

from . import cells, layer, transforms

NAME = "rnnkern"
BY_TRANSFORMS = CELLS = True
INSTALL = "pip install --no-build-isolation ."


def load() -> None:
    import rnnkern  # noqa: F401


def make_layer(data: Data, theirs: torch.nn.RNNBase | None = None) -> torch.nn.Module:
    import rnnkern

    theirs = theirs or data.layer
    options = {"proj_size": theirs.proj_size} if theirs.proj_size else {}
    ours = getattr(rnnkern, type(theirs).__name__)(
        theirs.input_size, theirs.hidden_size, theirs.num_layers, bidirectional=theirs.bidirectional, **options
    )
    ours.to(theirs.weight_ih_l0).load_state_dict(theirs.state_dict())
    return ours.requires_grad_(data.problem.differentiates).train(theirs.training)


def build(data: Data) -> Callable[[int], object]:
    if data.problem.cells:
        import rnnkern

        return cells.loop(cells.cell_of(data, rnnkern), data)
    if data.problem.by_transforms:
        return transforms.transformed([make_layer(data, theirs) for theirs in data.layers], data)
    return calls(make_layer(data), data)


def calls(ours: torch.nn.Module, data: Data) -> Callable[[int], object]:
    if data.problem.mode == "step":
        return layer.step(ours.step, [x[0] for x in data.inputs], data)
    options = {} if data.reset_mask is None else {"reset_mask": data.reset_mask}
    return getattr(layer, data.problem.mode)(ours, data, **options)


def plan(data: Data, ours: torch.nn.Module | None = None) -> dict[str, Any]:
    """What the library chose for this problem; `ours`: its layer, where there is one already."""
    import rnnkern

    with torch.set_grad_enabled(data.problem.differentiates):
        return rnnkern.plan(ours or make_layer(data), data.leaves()[0][1])
