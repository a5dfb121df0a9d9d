"""`torch.fx.symbolic_trace`: a layer is one node of the graph, as torch.nn's layers are. Its tracer takes modules of
`torch.nn` for leaves by the name of their Python module, and would trace into ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import proxy

from rnnkern.torch_private import GLOBAL_HOOKS, MODULE_HOOKS, get_proxy_mode, is_fx_symbolic_tracing

PROXY: Any = proxy.Proxy


def traced(input: Any) -> bool:
    """Whether a call with this input may have to become a node."""
    return isinstance(input, PROXY) or is_fx_symbolic_tracing()


def node_of(module: torch.nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The node of a call with these arguments, some of which are `Proxy`; defaults need not stand in it.

    Returns:
        None where the layer itself is what is traced.

    Raises:
        TraceError: where no argument is traced, so that the results would be constants of the graph; and where a call
            of the module runs more than the method `forward`, which the node would run again.
    """
    nested = (value if isinstance(value, (tuple, list)) else [value] for value in (*args, *kwargs.values()))
    tracer = next((value.tracer for values in nested for value in values if isinstance(value, PROXY)), None)
    if tracer is None:
        if get_proxy_mode() is not None:  # make_fx, whose tensors are traced below
            return None
        raise proxy.TraceError(
            f"{type(module).__name__}: expected an argument that is traced, got none (a buffer is none): "
            "the layer's results would be constants of the graph"
        )
    if getattr(tracer, "root", None) is module or not hasattr(tracer, "path_of_module"):
        return None
    extended = type(module).forward is not forward or "forward" in vars(module)
    if extended or any(getattr(module, hooks) for hooks in MODULE_HOOKS) or any(GLOBAL_HOOKS):
        name = tracer.path_of_module(module)
        raise proxy.TraceError(
            f"{name}: a subclass of rnnkern's layers, or one with hooks, is traced as a leaf alone: "
            "give a torch.fx.Tracer whose is_leaf_module() takes it"
        )
    while len(args) > 1 and args[-1] is None:
        args = args[:-1]
    given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)
