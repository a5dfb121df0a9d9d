from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from rnnkern.int8 import Weights

def build_info() -> dict[str, Any]: ...
def strategies() -> list[str]: ...
def cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def force_strategy(name: str) -> str: ...
def plan(
    *,
    cell: str,
    dtype: str,
    device: str,
    steps: int,
    batch: int,
    rows: int,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    heads: int = 1,
    groups: int = 1,
    bias: bool = True,
    packed: bool = False,
    lengths: bool = False,
    reset: bool = False,
    recurrent_mask: bool = False,
    zoneout: bool = False,
    save: bool = False,
    recompute: bool = False,
    int8: bool = False,
    threads: int = 0,
    device_index: int = 0,
    gpu: dict[str, float] | None = None,
) -> dict[str, Any]: ...
def cached_cast(parameter: Tensor) -> Tensor: ...
def infer(
    x: Tensor,
    weights: Sequence[Tensor] | Weights,
    hx: Any,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    heads: int,
    zoneout: float,
) -> tuple[Tensor, Any] | None: ...
def infer_step(
    layer: Any,
    forward: Callable[..., Any],
    must_be_empty: tuple[str, ...],
    x: Tensor,
    hx: Any,
    weights: Weights | None,
) -> tuple[Tensor, Any] | None: ...
def run_cell(module: Any, cell: str, x: Tensor, hx: Any) -> tuple[Any, tuple[Tensor | None, ...] | None] | None: ...
def layer_forward(options: tuple[Any, ...], tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...] | None: ...
def layer_backward(
    options: tuple[Any, ...], needs: Sequence[bool], tensors: Sequence[Tensor | None], per_sample: bool
) -> tuple[Tensor, ...] | None: ...
def cell_backward(
    cell: str, needs: Sequence[bool], tensors: tuple[Tensor | None, ...]
) -> list[Tensor | None] | None: ...
