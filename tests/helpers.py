"""Random problems for the two operators, over every cell, schedule and option, and a pairwise choice among them."""

import contextlib
import functools
import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comparison import assert_close, error, random_like
from rnnkern import _C, autograd, reference

CELLS = tuple(reference.GATES)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCHEDULES = ("plain", "lengths", "reset", "lengths+reset", "packed", "packed+reset")
# None of these reads another's: the heads and the projection of one layer exclude each other.
WIDTHS = ("plain", "heads", "projection")
MASKS = ("none", "recurrent", "zoneout_train", "zoneout_eval", "recurrent+zoneout_train")
RESETS = ("3 %", "first step", "all")

every_cell = pytest.mark.parametrize("cell", CELLS)
two_cells = pytest.mark.parametrize("cell", ["lstm", "gru"])
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
some_schedules = pytest.mark.parametrize("schedule", ["plain", "lengths+reset", "packed+reset"])


@dataclass
class Problem:
    """One call of `autograd.layer` or `reference.layer`."""

    tensors: dict[str, torch.Tensor | list[torch.Tensor] | None]
    options: dict[str, object]
    zoneout: float
    lengths: torch.Tensor | None  # of packed rows too
    dtype: torch.dtype  # that its numbers are exact in

    @property
    def inputs(self) -> list[torch.Tensor]:
        """All that is differentiable."""
        t = self.tensors
        return [tensor for tensor in (t["x"], t["h_0"], t["c_0"], *t["weights"]) if tensor is not None]

    def run(self, layer=None, inputs=None, **options):
        """The results that there are: `y, h_n`, with an LSTM `c_n` and `cells` too; by the kernels unless told."""
        tensors = self.tensors
        if inputs is not None:
            rest = list(inputs)
            given = {name: None if tensors[name] is None else rest.pop(0) for name in ("x", "h_0", "c_0")}
            tensors = {**tensors, **given, "weights": rest}
        if layer is None:
            layer, options = autograd.layer, {"want_cells": True, **options}
        results = layer(**tensors, zoneout=self.zoneout, **self.options, **options)
        return tuple(result for result in results if result is not None)

    def converted(self, function):
        """The same problem with every tensor replaced."""
        return replace(
            self,
            tensors={
                name: [function(w) for w in value] if name == "weights" else None if value is None else function(value)
                for name, value in self.tensors.items()
            },
        )

    def in_double(self):
        return self.converted(lambda t: t.detach().double() if t.is_floating_point() else t)

    def requiring_gradients(self):
        names = ("x", "h_0", "c_0")
        detached = {name: None if (t := self.tensors[name]) is None else t.detach().requires_grad_() for name in names}
        weights = [w.detach().requires_grad_() for w in self.tensors["weights"]]
        return replace(self, tensors={**self.tensors, **detached, "weights": weights})

    def outputs_and_gradients(self, layer=None, **options):
        """All results, and gradients of their random combination to all inputs."""
        problem = self.requiring_gradients()
        outputs = problem.run(layer, **options)
        differentiable = [(o, d) for o, d in zip(outputs, random_like(outputs), strict=True) if o.requires_grad]
        results, d_results = zip(*((o, d.to(self.dtype).to(d.dtype)) for o, d in differentiable), strict=True)
        found = torch.autograd.grad(results, problem.inputs, d_results, materialize_grads=True)
        return [o.detach() for o in outputs], list(found)


def problem(
    cell="lstm",
    schedule="plain",
    *,
    dtype=torch.float64,
    device="cpu",
    steps=5,
    batch=4,
    input_size=3,
    hidden_size=4,
    bidirectional=False,
    bias=True,
    width="plain",
    masks="none",
    reset="3 %",
    heads=2,
    proj_size=None,
    padding=float("nan"),
    from_zero=False,
):
    """Fresh random tensors; `torch.manual_seed` decides them. Lengths have a zero and a full one."""

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).to(device)

    heads = heads if width == "heads" else 1
    hidden_size = -(-hidden_size // heads) * heads
    projected = width == "projection" and cell == "lstm"
    state = (proj_size or max(1, hidden_size // 2)) if projected else hidden_size
    directions = 2 if bidirectional else 1
    gate_size = reference.GATES[cell] * hidden_size
    scale = 1 / (hidden_size / heads + input_size) ** 0.5  # gates of about one; saturated ones have little gradient
    weights = []
    for _ in range(directions):
        weights += [normal(gate_size, input_size, scale=scale), normal(gate_size, state // heads, scale=scale)]
        weights += [normal(gate_size, scale=scale) for _ in range(2)] if bias else []
        weights += [normal(state, hidden_size, scale=scale)] if projected else []

    x = normal(steps, batch, input_size)
    h_0 = normal(directions, batch, state)
    if cell == "rnn_relu" and dtype.itemsize == 2:
        # Units that are well on or well off: 16 bits do not say on which side of relu's kink a sum near zero lies.
        sign = torch.randn(hidden_size, device=device).sign()
        weights = [w.abs() * sign.to(dtype).view(-1, *[1] * (w.dim() - 1)) for w in weights]
        weights = [w / w.shape[1] ** 0.5 if w.dim() == 2 else w for w in weights]
        x, h_0 = x.abs(), h_0.abs()
    lengths = batch_sizes = reset_mask = None
    live = torch.ones(steps, batch, dtype=torch.bool)
    if schedule.startswith(("lengths", "packed")):
        shortest = 1 if schedule.startswith("packed") else 0
        lengths = torch.randint(shortest, steps + 1, (batch,))
        if batch > 0:
            lengths[0] = steps
        if batch > 1:
            lengths[-1] = shortest
        if shortest:
            lengths = lengths.sort(descending=True).values
        live = torch.arange(steps)[:, None] < lengths
        x = torch.where(live.to(device).unsqueeze(2), x, padding)
    if schedule.endswith("reset"):
        reset_mask = {
            "3 %": few_resets(live),
            "first step": torch.arange(steps)[:, None].expand(steps, batch) == 0,
            "all": torch.ones(steps, batch, dtype=torch.bool),
        }[reset].to(device)
    rows = [steps, batch]
    known = lengths
    if schedule.startswith("packed"):
        x, batch_sizes, lengths = x[live], live.sum(1), None
        reset_mask = reset_mask if reset_mask is None else reset_mask[live]
        rows = [x.shape[0]]

    def zone(size):
        return (torch.rand(directions, *rows, size) < 0.3).to(device)

    training = masks.endswith("zoneout_train")
    tensors = {
        "x": x,
        "weights": weights,
        "h_0": h_0,
        "c_0": normal(directions, batch, hidden_size) if cell == "lstm" else None,
        "lengths": None if lengths is None else lengths.to(device),
        "reset_mask": reset_mask,
        "batch_sizes": batch_sizes,
        "recurrent_mask": ((torch.rand(directions, batch, state) < 0.7) / 0.7).to(dtype).to(device)
        if masks.startswith("recurrent")
        else None,
        "zoneout_h": zone(state) if training else None,
        "zoneout_c": zone(hidden_size) if training and cell == "lstm" else None,
    }
    if from_zero and batch_sizes is None:  # packed rows do not say how many sequences they are of
        tensors["h_0"] = tensors["c_0"] = None
    options = {"cell": cell, "bidirectional": bidirectional, "heads": heads}
    return Problem(tensors, options, 0.3 if masks == "zoneout_eval" else 0.0, known, dtype)


def few_resets(live):
    """3 % of all steps, and one that some row lives at in any case: behind the first, where there is one."""
    resets = torch.rand(live.shape) < 0.03
    later = live.clone()
    later[0] &= len(live) == 1
    places = later.nonzero()
    if len(places) > 0:
        resets[tuple(places[torch.randint(len(places), ())])] = True
    return resets


def comparable_problem(*arguments, **options):
    """A random problem whose answer rounding does not change: the reference in double must move less than the tolerance
    when the last bit of its operands does. A sum that cancels has no answer to compare in 16 bits."""
    for _ in range(20):
        one = problem(*arguments, **options)
        expected = one.in_double().outputs_and_gradients(reference.layer)
        if all(_moves_little(one, expected) for _ in range(6)):
            return one
    raise AssertionError("20 random problems, and rounding changes the answer of each")


def _moves_little(one, expected):
    dtype = one.tensors["x"].dtype
    step = torch.finfo(dtype).eps / 2
    moved = one.in_double().converted(
        lambda t: t * (1 + step * (torch.rand_like(t) * 2 - 1)) if t.is_floating_point() else t
    )
    ceiling = reference.TOLERANCE[str(dtype).removeprefix("torch.")]
    outputs, gradients = moved.outputs_and_gradients(reference.layer)
    return all(error(*pair) <= ceiling for pair in zip(outputs, expected[0], strict=True)) and all(
        error(*pair) <= reference.GRADIENT_FACTOR * ceiling for pair in zip(gradients, expected[1], strict=True)
    )


tiny = functools.partial(problem, steps=3, batch=2, input_size=2, hidden_size=2, padding=0.0)


def requiring_gradients(tensors):
    return [t.detach().requires_grad_() for t in tensors]


def loss(outputs):
    """A number that depends on every result in its own way, and not linearly."""
    return sum((place + 1) * (out * out).sum() + out.sin().sum() for place, out in enumerate(outputs))


def by_kernels(one):
    return lambda *inputs: one.run(inputs=inputs)


def by_reference(one):
    return lambda *inputs: one.run(reference.layer, inputs)


def assert_equals_reference(one: Problem, **options):
    """Results and gradients against the reference in double, within the table of tolerances."""
    dtype = one.tensors["x"].dtype
    expected, expected_gradients = one.in_double().outputs_and_gradients(reference.layer)
    found, gradients = one.outputs_and_gradients(**options)
    assert_close(found, expected, dtype)
    assert_close(gradients, expected_gradients, dtype, gradient=True)


def pairwise(seed=0, **values):
    """Choices in which every two values occur together: a few dozen instead of the product of all."""
    generator = random.Random(seed)
    names = list(values)

    def pairs(choice):
        return set(itertools.combinations(choice.items(), 2))

    missing = {
        ((one, first), (other, second))
        for one, other in itertools.combinations(names, 2)
        for first, second in itertools.product(values[one], values[other])
    }
    chosen = []
    while missing:
        required = dict(generator.choice(sorted(missing, key=str)))
        candidates = [{name: required.get(name, generator.choice(values[name])) for name in names} for _ in range(40)]
        chosen.append(max(candidates, key=lambda choice: len(pairs(choice) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def named(choice):
    """A parametrised case's name."""
    values = (name if value is True else f"no_{name}" if value is False else value for name, value in choice.items())
    return "-".join(str(value).removeprefix("torch.") for value in values) or "plain"


class Layer(torch.nn.Module):
    """One layer as a module: the weights of a problem are its parameters; it keeps the schedule and the masks."""

    def __init__(self, one):
        super().__init__()
        self.weights = torch.nn.ParameterList(one.tensors["weights"])
        given = ("x", "h_0", "c_0", "weights")
        self.rest = {name: value for name, value in one.tensors.items() if name not in given and value is not None}
        self.options = {"zoneout": one.zoneout, "want_cells": True, **one.options}

    def forward(self, x, h_0, c_0=None):
        results = autograd.layer(x, list(self.weights), h_0, c_0, **self.rest, **self.options)
        return tuple(result for result in results if result is not None)


def inputs_of(one):
    """What `Layer.forward` takes."""
    return tuple(t for name in ("x", "h_0", "c_0") if (t := one.tensors[name]) is not None)


class OperatorCalls(TorchDispatchMode):
    """Within it, every call of the library's operators: its name and, by the names of the schema, its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rnnkern":
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            self.calls.append((func._schema.name.removeprefix("rnnkern::"), given))
        return func(*args, **(kwargs or {}))

    @property
    def names(self):
        return [name for name, _ in self.calls]


@functools.cache
def instruction_sets():
    """Those of this processor."""
    return tuple(_C.cpu_isas())


@contextlib.contextmanager
def forced_isa(isa):
    before = _C.build_info()["cpu_isa"]
    _C.set_cpu_isa(isa)
    try:
        yield isa
    finally:
        _C.set_cpu_isa(before)
