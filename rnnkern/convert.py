"""Swaps torch.nn's recurrent layers and cells for this library's, and back: same parameters, another class."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from rnnkern import cells, modules
from rnnkern.torch_private import COMPILED, compiled_by_torch

M = TypeVar("M", bound=nn.Module)

_SWAPPED: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
    nn.RNNCell: cells.RNNCell,
}
_TORCH = {ours: torchs for torchs, ours in _SWAPPED.items()}
_NAMES = {cls.__name__ for cls in _SWAPPED}


def convert(module: M, *, inplace: bool = True) -> M:
    """Swaps every torch.nn recurrent layer and cell under `module`; a layer that stands in two places stays one.

    They change their class and nothing else: whatever refers to one (an attribute, a list, a bound method) refers to
    the swapped layer, and optimisers, hooks, tied weights and parametrisations survive. What cannot be swapped is left
    as it is and named by a UserWarning.

    Args:
        inplace: False works on a deep copy.

    Returns:
        `module`; if it is a torch.nn layer or cell itself, another with the same `Parameter` objects, so that the two
        can be compared.
    """
    check_is_module(module)
    if not inplace:
        module = copy.deepcopy(module)
    result: nn.Module = module
    reasons: list[str] = []
    wrapped = compiled_inside(module)
    for path, found in module.named_modules():
        cls = _SWAPPED.get(plain_class(found))
        if reason := _reason_to_leave(found, wrapped):
            reasons.append(f"{path or 'the module itself'} ({type(found).__name__}): {reason}")
        elif cls is not None and found is module:
            result = _recast(found, cls)
            _rebind_hooks(result)
        elif cls is not None:
            found.__class__ = _with_parametrisations(cls, found)
    if reasons:
        warnings.warn("rnnkern.convert left as they are: " + "; ".join(reasons), UserWarning, stacklevel=2)
    return cast("M", result)


def check_is_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__module__}.{type(module).__qualname__}")


def compiled_inside(module: nn.Module) -> set[nn.Module | None]:
    """The modules that a `torch.compile(it)` under `module` would go on calling, whatever stood in their place."""
    return {compiled_by_torch(found) for found in module.modules()}


def _reason_to_leave(module: nn.Module, wrapped: set[nn.Module | None]) -> str | None:
    """Why a recurrent module of torch, or derived from one, cannot be swapped; see `compiled_inside`."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module" if getattr(module, "original_name", None) in _NAMES else None
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return None
    if isinstance(module, (modules.Recurrent, cells.RecurrentCell)):
        return None
    cls = plain_class(module)
    if cls not in _SWAPPED:
        own = "its own forward" if "forward" in vars(cls) else "its own class"
        return f"a subclass with {own}"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if COMPILED in vars(module) or module in wrapped:
        return "it is compiled; compile it after the conversion"
    return other_meaning(module)


def other_meaning(module: nn.Module) -> str | None:
    """Why a torch.nn layer or cell cannot be swapped: somebody gave it an attribute that this library's class reads."""
    cls = plain_class(module)
    if cls not in _SWAPPED:
        return None
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    taken = own & (set(dir(_SWAPPED[cls])) - set(dir(cls)) - {"nonlinearity"})
    return f"its attribute {min(taken)!r} means something else there" if taken else None


def as_ours(module: nn.Module) -> Any:
    """The module of this library that a torch.nn layer or cell is swapped for; its own are given back."""
    cls = plain_class(module)
    return _recast(module, _SWAPPED[cls]) if cls in _SWAPPED else module


def as_torch(module: nn.Module) -> Any:
    """The torch.nn module of the same function, with hooks of its own from now on; ValueError where there is none."""
    ours = next(cls for cls in type(module).__mro__ if cls in _TORCH)
    if type(module).forward is not ours.forward or "forward" in vars(module):
        raise ValueError(f"torch.nn has no equal of {type(module).__name__}, which has a forward of its own")
    result = _recast(module, _TORCH[ours])
    for name, value in list(vars(result).items()):
        if name in modules.KEYWORDS:
            delattr(result, name)
        elif isinstance(value, (dict, set, list)):
            vars(result)[name] = copy.copy(value)
    if isinstance(result, nn.RNNBase):
        result._init_flat_weights()
    _rebind_hooks(result)
    return result


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class without what `torch.nn.utils.parametrize` derives from it."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def _with_parametrisations(cls: type[nn.Module], module: nn.Module) -> type[nn.Module]:
    """`cls`, or what `torch.nn.utils.parametrize` would derive from it: with a property for each tensor of `module`."""
    if not parametrize.is_parametrized(module):
        return cls
    own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{cls.__name__}", (cls,), own)


def _recast(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Another module of the class `cls` with the parameters, hooks and attributes of `module`."""
    cls = _with_parametrisations(cls, module)
    result = cls.__new__(cls)
    state = {name: value for name, value in vars(module).items() if name != COMPILED}
    # Handles of hooks refer to the very dictionaries of hooks, so those are shared; the others are the module's own.
    for name in ("_parameters", "_buffers", "_modules", "_flat_weights"):
        if name in state:
            state[name] = copy.copy(state[name])
    vars(result).update(state)
    return result


def _rebind_hooks(module: nn.Module) -> None:
    """Gives `module` to those hooks that torch wraps together with the module that they were registered on."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key, wrapped in hooks.items():
        if wrapped.with_module:
            hooks[key] = type(wrapped)(wrapped.hook, module)
