"""Every private name of torch that rnnkern uses, in one place: they move between releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.nn.modules import module

below_autograd = torch._C._AutoDispatchBelowAutograd
transforms_active = torch._C._are_functorch_transforms_active
dispatch_modes = torch._C._len_torch_dispatch_stack
autocast_enabled = torch._C._is_any_autocast_enabled
forward_mode_enabled = torch._C._is_fwd_grad_enabled
set_forward_mode = forward_ad._set_fwd_grad_enabled

# The vmap that torch had before torch.func, which `torch.autograd.grad(is_grads_batched=True)` still runs.
older_vmap_batched = torch._C._functorch.is_legacy_batchedtensor
older_vmap_enter = torch._add_batch_dim  # (tensor, dim, level)
older_vmap_leave = torch._remove_batch_dim  # (tensor, level, size where it has no such level, dim)

# Hooks of all modules at once; torch adds to these dictionaries and never replaces them.
GLOBAL_HOOKS: tuple[Mapping[int, Any], ...] = (
    module._global_forward_hooks,
    module._global_forward_pre_hooks,
    module._global_backward_hooks,
    module._global_backward_pre_hooks,
)


def derivatives_active() -> bool:
    """Whether a transform of torch.func other than vmap is."""
    return transforms_active() and any(
        level.key() != TransformType.Vmap for level in torch._C._functorch.get_interpreter_stack()
    )


def dual_level() -> bool:
    """Whether forward-mode differentiation goes on."""
    return forward_ad._current_level >= 0
