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

    The new layers hold the same `Parameter` objects, so optimisers, hooks, tied weights and parametrisations survive.
    What cannot be swapped is left as it is and named by a UserWarning. A layer that also stands in a list, tuple or
    dictionary that is an attribute of a module is swapped there too.

    Args:
        inplace: False works on a deep copy.

    Returns:
        `module`, or the layer that replaces it if it is a recurrent layer itself.
    """
    check_is_module(module)
    if not inplace:
        module = copy.deepcopy(module)
    reasons: list[str] = []
    swapped: dict[nn.Module, nn.Module] = {}
    wrapped = compiled_inside(module)
    for path, found in module.named_modules():
        reason = _swap(found, swapped, wrapped)
        if reason is not None:
            reasons.append(f"{path or 'the module itself'} ({type(found).__name__}): {reason}")
    replace(module, swapped)
    if reasons:
        warnings.warn("rnnkern.convert left as they are: " + "; ".join(reasons), UserWarning, stacklevel=2)
    return cast("M", swapped.get(module, module))


def check_is_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__module__}.{type(module).__qualname__}")


def replace(module: nn.Module, swapped: dict[nn.Module, nn.Module]) -> None:
    """Puts the new modules in the old ones' places under `module`: among its children, and in attributes that are plain
    tuples, lists or dictionaries, as values; for that is what some forward calls."""
    done: dict[int, tuple[Any, Any]] = {}  # by its id: a container, and what takes its place

    def replaced(value: Any) -> Any:
        kind = type(value)  # isinstance would ask what a weak proxy stands for
        if issubclass(kind, nn.Module):
            return swapped.get(value, value)
        if not issubclass(kind, (list, tuple, dict)):
            return value
        if id(value) in done:
            return done[id(value)][1]
        done[id(value)] = value, value  # it may hold itself
        items = value.items() if issubclass(kind, dict) else enumerate(value)
        changed = {key: new for key, old in items if (new := replaced(old)) is not old}
        if kind is tuple:
            new = tuple(changed.get(index, old) for index, old in enumerate(value)) if changed else value
            done[id(value)] = value, new
            return new
        if not issubclass(kind, tuple):
            for key, new in changed.items():
                value[key] = new
        return value

    for parent in [*module.modules(), *swapped.values()]:
        replaced(vars(parent))


def compiled_inside(module: nn.Module) -> set[nn.Module | None]:
    """The modules that a `torch.compile(it)` under `module` would go on calling, whatever stood in their place."""
    return {compiled_by_torch(found) for found in module.modules()}


def _swap(module: nn.Module, swapped: dict[nn.Module, nn.Module], wrapped: set[nn.Module | None]) -> str | None:
    """Adds the replacement of a recurrent module to `swapped`, or says why there is none; see `compiled_inside`."""
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
    if reason := other_meaning(module):
        return reason
    swapped[module] = _recast(module, _SWAPPED[cls])
    _rebind_hooks(swapped[module])
    return None


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


def _recast(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Another module of the class `cls` with the parameters, hooks and attributes of `module`."""
    if parametrize.is_parametrized(module):  # its class holds a property for each parametrised tensor
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
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
