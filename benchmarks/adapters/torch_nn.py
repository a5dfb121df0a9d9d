"""``torch.nn.LSTM``, ``GRU`` and ``RNN``: oneDNN or per-step operators on the CPU, cuDNN on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from suites import Data

from . import Unsupported, cells, layer, transforms

NAME = "torch.nn"
BY_TRANSFORMS = CELLS = True
INSTALL = "pip install torch"


def load() -> None:
    import torch.nn  # noqa: F401


def build(data: Data) -> Callable[[int], object]:
    if data.reset_mask is not None:
        raise Unsupported("torch.nn has no reset mask")
    if data.problem.by_transforms:
        return transforms.loop(data.layers, data)
    if data.problem.cells:
        return cells.loop(cells.cell_of(data), data)
    if data.problem.mode == "step":
        return layer.step(data.layer, data.inputs, data)  # a call with T = 1
    return getattr(layer, data.problem.mode)(data.layer, data)
