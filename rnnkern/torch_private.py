"""The private names of torch that rnnkern uses, in one place, since they move between releases; but for attributes of
`nn.Module` and `RNNBase`, which a layer that is one has itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch import pyfunctorch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.fx import _symbolic_trace
from torch.fx.experimental import proxy_tensor
from torch.nn.modules import module

below_autograd = torch._C._AutoDispatchBelowAutograd
transforms_active = torch._C._are_functorch_transforms_active
forward_mode_enabled = torch._C._is_fwd_grad_enabled
set_forward_mode = forward_ad._set_fwd_grad_enabled

# The levels that transforms of torch.func make, innermost first.
innermost_level = pyfunctorch.retrieve_current_functorch_interpreter
FunctionalizeLevel = pyfunctorch.FunctionalizeInterpreter
VmapLevel = pyfunctorch.VmapInterpreter
unwrap_dead = _functorch.unwrap_if_dead
unwrap_for_gradient = _functorch._unwrap_for_grad  # (tensor, level)
wrap_for_gradient = _functorch._wrap_for_grad  # (tensor, level)
unwrap_batched = _functorch._unwrap_batched  # (tensor, level) -> tensor, dim or None
wrap_batched = _functorch._add_batch_dim  # (tensor, dim, level)

# The vmap that torch had before torch.func, which `torch.autograd.grad(is_grads_batched=True)` still runs.
older_vmap_batched = torch._C._functorch.is_legacy_batchedtensor
older_vmap_enter = torch._add_batch_dim  # (tensor, dim, level)
older_vmap_leave = torch._remove_batch_dim  # (tensor, level, size where it has no such level, dim)

is_fx_symbolic_tracing = _symbolic_trace.is_fx_symbolic_tracing
get_proxy_mode = proxy_tensor.get_proxy_mode  # make_fx's, where it traces

# Attributes of a module that hold what its call runs beside its forward.
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Hooks of all modules at once; torch adds to these dictionaries and never replaces them.
GLOBAL_HOOKS: tuple[Mapping[int, Any], ...] = (
    module._global_forward_hooks,
    module._global_forward_pre_hooks,
    module._global_backward_hooks,
    module._global_backward_pre_hooks,
)


# Where `module.compile()` leaves what a call of the module runs, bound to that very module.
COMPILED = "_compiled_call_impl"


def compiled_by_torch(module: torch.nn.Module) -> torch.nn.Module | None:
    """What `torch.compile(it)` made this module of: its calls are bound to that very module."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    if frame is None or not isinstance(module, frame.OptimizedModule):
        return None
    return module._orig_mod


@cache
def _at_one_level(function: Any) -> Any:
    """The same function without the public class, whose `apply` asks for all levels."""
    methods = {name: staticmethod(getattr(function, name)) for name in ("forward", "backward", "jvp")}
    return type(function.__name__, (_SingleLevelFunction,), methods)


def apply_at_level(level: Any, function: Any, arguments: Sequence[Any], tensors: Sequence[Tensor | None]) -> Any:
    """`function.apply(*arguments, *tensors)` at this level of torch.func's alone."""
    lift = level._cptr.lift
    with enable_single_level_autograd_function():
        return _at_one_level(function).apply(*arguments, *(t if t is None else lift(t) for t in tensors))


def dual_level() -> bool:
    """Whether forward-mode differentiation goes on."""
    return forward_ad._current_level >= 0
