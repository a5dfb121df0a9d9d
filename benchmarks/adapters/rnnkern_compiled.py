"""This library's layers under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from suites import Data

from . import layer, refuse, rnnkern_layer

NAME = "rnnkern compiled"
INSTALL = rnnkern_layer.INSTALL
ASK = "it is not a peer, and compiles for some seconds a problem"
BACKEND = "inductor"
load = rnnkern_layer.load


def build(data: Data) -> Callable[[int], object]:
    refuse(NAME, {"step() is not compiled": data.problem.mode == "step"})
    torch._dynamo.reset()  # or the many problems of a run exhaust its cache
    compiled = torch.compile(rnnkern_layer.make_layer(data), backend=BACKEND, fullgraph=True)
    options = {} if data.reset_mask is None else {"reset_mask": data.reset_mask}
    return getattr(layer, data.problem.mode)(compiled, data, **options)
