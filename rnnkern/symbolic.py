"""`torch.fx.symbolic_trace`: a layer is one node of the graph, as torch.nn's layers are. Its tracer takes modules of
`torch.nn` for leaves by the name of their Python module, and would trace into ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

PROXY: Any = torch.fx.Proxy


def node_of(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The node of a call with these arguments, where the input is a `Proxy`; defaults need not stand in it.

    Returns:
        None where the layer itself is what is traced.
    """
    tracer = args[0].tracer
    if getattr(tracer, "root", None) is module:
        return None
    while len(args) > 1 and args[-1] is None:
        args = args[:-1]
    given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)
