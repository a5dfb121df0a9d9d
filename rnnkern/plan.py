"""How a call would run, and with what this library was built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from rnnkern import _C, autocast, autograd, checks, ops
from rnnkern._version import __version__
from rnnkern.cells import RecurrentCell
from rnnkern.modules import Recurrent
from rnnkern.quantized import QuantizedLayer

Layer = Recurrent | RecurrentCell | QuantizedLayer
_OF_A_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

_BY_REFERENCE = "double backward and jvp differentiate the reference formula: plain torch, step by step"
_INT8 = "the weights are int8, packed once: float32 inference on the CPU, without gradients"
_ONE_STEP = "a cell runs as a layer of one step, so that nothing is kept from step to step"


def build_info() -> dict[str, Any]:
    """`version`, `torch`, `cuda` (None or its version), `cuda_archs`, `cpu_isas` (compiled in), `cpu_isa` (in use)."""
    return {"version": __version__, "torch": torch.__version__, **_C.build_info()}


def strategies() -> list[str]:
    """Names of the strategies that were compiled in."""
    return list(_C.strategies())


@contextlib.contextmanager
def strategy(name: str) -> Iterator[None]:
    """Forces a strategy for calls on its backend, in the whole process: backward passes run on threads of their own.

    A call that the strategy does not support raises, and so does an unknown name (ValueError).

    Args:
        name: one of `strategies()`, or "stationary" for any exchange of that one.
    """
    if not name:  # which would stand for none
        raise ValueError(f"strategy: expected one of {', '.join(strategies())}, got {name!r}")
    previous = _C.force_strategy(name)
    try:
        yield
    finally:
        _C.force_strategy(previous)


def plan(layer: Layer, input: Tensor | PackedSequence) -> dict[str, Any]:
    """How `layer(input)` would run, now: gradient mode, training mode, autocast and a forced strategy count.

    Returns:
        `backend`; the first layer's `strategy`, `workers`, `split` and `rejected`, why not the other strategies;
        `bytes`, memory beside the results while it runs; `saved_bytes`, the gates kept for backward; `floor_us`, about
        what the products need at least, on any CPU by the rates of a Zen 4 core; `layers`, the same for each; `notes`,
        what runs slower than that. On a GPU also `forward` and, where gradients are wanted, `backward`: the first
        layer's `strategy`, `us_per_step` and `us` as predicted, `bytes`, `rejected`, and of a stationary one
        `exchange`, `arithmetic`, `groups_per_launch` (directions or members that run at once), `blocks`, `team` (blocks
        that hold the weights once), `threads`, `units` of a block, `tiles` of `tile_rows` batch rows, `shared_bytes`.
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"layer must be a layer or a cell of rnnkern, got {type(layer).__module__}.{type(layer).__qualname__}; "
            "rnnkern.convert() swaps those of torch.nn"
        )
    return _plan(layer, _problem(layer, input))


def _plan(layer: Layer, problem: dict[str, Any]) -> dict[str, Any]:
    layers = []
    directions = problem["groups"]
    for index in range(getattr(layer, "num_layers", 1)):
        if index > 0:
            problem["input_size"] = directions * (problem["proj_size"] or problem["hidden_size"])
        layers.append(dict(_C.plan(**problem)))
    saved = 0
    if problem["save"] and not problem["recompute"]:
        units = directions * problem["rows"] * problem["hidden_size"] * ops.SAVED[problem["cell"]]
        saved = units * getattr(torch, problem["dtype"]).itemsize
    return {
        "backend": problem["device"],
        **layers[0],
        "bytes": max(one["bytes"] for one in layers),
        "saved_bytes": saved * len(layers),
        "floor_us": sum(one["floor_us"] for one in layers),
        "layers": layers,
        "notes": [_INT8 if isinstance(layer, QuantizedLayer) else _BY_REFERENCE]
        + ([_ONE_STEP] if isinstance(layer, RecurrentCell) else []),
    }


def explain(layer: Layer, input: Tensor | PackedSequence) -> str:
    """`plan(layer, input)` in words."""
    return _explain(layer, plan(layer, input))


def _explain(layer: Layer, found: dict[str, Any]) -> str:
    count = len(found["layers"])
    split = "" if found["split"] == "none" else f", split by {found['split']}"
    workers = f", workers: {found['workers']}{split}" if found["backend"] == "cpu" else ""
    sweeps = {name: found[name] for name in ("forward", "backward") if name in found}
    lines = [f"{layer} on {found['backend']}", f"  strategy  {found['strategy']}{workers}"]
    lines += [f"  {name:<8}  {_sweep(sweep)}" for name, sweep in sweeps.items()]
    lines += [
        f"  memory    {found['bytes']:,} bytes while it runs, {found['saved_bytes']:,} bytes kept for backward",
        f"  floor     {found['floor_us']:.1f} µs" + (f" for {count} layers" if count > 1 else ""),
    ]
    lines += [f"  not {name}: {reason}" for name, reason in found["rejected"].items()]
    if "backward" in sweeps:
        lines += [f"  backward, not {name}: {reason}" for name, reason in sweeps["backward"]["rejected"].items()]
    lines += [f"  note: {note}" for note in found["notes"]]
    return "\n".join(lines)


def _sweep(sweep: dict[str, Any]) -> str:
    """One sweep of a GPU plan in words."""
    layout = ""
    if "exchange" in sweep:
        layout = (
            f" in {sweep['arithmetic']}, {sweep['blocks']} blocks of {sweep['threads']} threads, {sweep['team']} to a "
            f"copy of the weights, {sweep['units']} units each, {sweep['tiles']} x {sweep['tile_rows']} batch rows, "
            f"{sweep['shared_bytes']:,} bytes of shared memory"
        )
    time = f"predicted {sweep['us_per_step']:.2f} µs a step, {sweep['us']:.1f} µs in all"
    return f"{sweep['strategy']}{layout}; {sweep['bytes']:,} bytes; {time}"


def _made_of(layer: Layer, recurse: bool) -> list[Tensor]:
    """The tensors that the float weights are made of; `recurse`: those of parametrisations too. To look evaluates none
    of these, which may draw numbers or change themselves."""
    names = [] if isinstance(layer, QuantizedLayer) else getattr(layer, "_flat_weights_names", _OF_A_CELL)
    found: list[Tensor] = []
    for name in names:
        if parametrize.is_parametrized(layer, name):
            found += layer.parametrizations[name].parameters(recurse)  # type: ignore[index, union-attr]
        elif (weight := getattr(layer, name)) is not None:
            found.append(weight)
    return found


def _problem(layer: Layer, input: Tensor | PackedSequence) -> dict[str, Any]:
    """The arguments of `_C.plan` for the first layer."""
    packed = isinstance(input, PackedSequence)
    x = input.data if isinstance(input, PackedSequence) else input
    dims = (2,) if packed else (1, 2) if isinstance(layer, RecurrentCell) else (2, 3)
    if x.dim() not in dims:
        raise ValueError(f"input: expected {' or '.join(map(str, dims))} dimensions, got {x.dim()}")
    if isinstance(input, PackedSequence):
        steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
        rows = x.shape[0]
    elif isinstance(layer, RecurrentCell):
        steps, batch = 1, x.shape[0] if x.dim() == 2 else 1
        rows = batch
    else:
        shape = x.shape if x.dim() == 3 else (x.shape[0], 1) if not layer.batch_first else (1, x.shape[0])
        steps, batch = (shape[1], shape[0]) if layer.batch_first else (shape[0], shape[1])
        rows = steps * batch
    device = x.device
    if device.type not in checks.BACKENDS[:-1]:
        raise checks.no_backend(device)
    dtype = x.dtype
    if autocast.applies_to(x):
        dtype = torch.get_autocast_dtype(device.type)
    elif not isinstance(layer, QuantizedLayer):
        checks.check_weights(x, _made_of(layer, recurse=False))
    if x.shape[-1] != layer.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {layer.input_size}, got {x.shape[-1]}"
        )
    gradient = autograd.recording() and any(t.requires_grad for t in (x, *_made_of(layer, recurse=True)))
    problem = {
        "cell": layer._cell,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "steps": steps,
        "batch": batch,
        "rows": rows,
        "input_size": layer.input_size,
        "hidden_size": layer.hidden_size,
        "proj_size": 0,
        "groups": 1,
        "bias": bool(layer.bias),
        "packed": packed,
        "save": gradient,
        "recompute": False,
        "threads": torch.get_num_threads(),
        "device_index": device.index or 0,
    }
    if not isinstance(layer, RecurrentCell):
        problem.update(
            proj_size=layer.proj_size,
            heads=layer.heads,
            groups=2 if layer.bidirectional else 1,
            zoneout=layer.zoneout > 0,
        )
    if isinstance(layer, QuantizedLayer):
        layer._weights().check(x)
        problem.update(save=False, dtype="float32", int8=True)
    elif isinstance(layer, Recurrent):
        recurrent_mask = layer.training and layer.recurrent_dropout > 0
        problem.update(recurrent_mask=recurrent_mask, recompute=layer.recompute)
    return problem
