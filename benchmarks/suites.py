"""The problems: what they are, and in which suites they stand. To add one, add it to a list at the end of this file."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CLASSES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Problem:
    """One piece of work. The input is as wide as the layer (``I = H``), as in DeepBench, unless ``input`` is given.

    ``mode``: ``inference`` is a forward call without gradients, ``training`` forward and backward into the input and
    the weights, ``step`` one time step from a given state without gradients, ``per-sample`` forward and backward into
    the weights for each sample of the batch alone. ``members``: so many layers, each on the same input. ``cells``: the
    layer is a loop over the time steps that calls a cell.
    """

    cell: str
    hidden: int
    batch: int
    steps: int
    mode: str = "inference"
    layers: int = 1
    bidirectional: bool = False
    projection: int = 0
    packed: bool = False  # a PackedSequence with lengths from T/4 to T
    reset: float = 0.0  # the share of time steps at which a new segment starts
    dtype: str = "float32"
    device: str = "cpu"
    input: int = 0
    members: int = 1
    cells: bool = False

    @property
    def input_size(self) -> int:
        return self.input or self.hidden

    @property
    def by_transforms(self) -> bool:
        """Whether it takes `torch.func`'s transforms, or a loop over layers or samples in their place."""
        return self.members > 1 or self.mode == "per-sample"

    @property
    def extras(self) -> str:
        """What is beside its cell, mode, sizes and dtype."""
        words = [
            f"I {self.input}" if self.input else "",
            f"{self.members} members" if self.members > 1 else "",
            "by cells" if self.cells else "",
            f"{self.layers} layers" if self.layers > 1 else "",
            "bidirectional" if self.bidirectional else "",
            f"P {self.projection}" if self.projection else "",
            "packed" if self.packed else "",
            f"reset {self.reset:.0%}" if self.reset else "",
        ]
        return " ".join(word for word in words if word)

    @property
    def name(self) -> str:
        dtype = self.dtype if self.dtype != "float32" else ""
        words = [self.cell.upper(), self.mode, f"H {self.hidden} B {self.batch} T {self.steps}", self.extras, dtype]
        return " ".join(word for word in words if word)

    @property
    def one_call(self) -> bool:
        """Whether it is one call of one layer, which has a plan and a floor."""
        return not (self.by_transforms or self.cells)

    @property
    def flops(self) -> float:
        """Multiplications and additions of the matrix products, padding included."""
        width = self.projection or self.hidden
        columns = self.input_size + width + (self.layers - 1) * ((2 if self.bidirectional else 1) * width + width)
        forward = 2.0 * self.steps * self.batch * GATES[self.cell] * self.hidden * columns
        forward *= (2 if self.bidirectional else 1) * self.members
        return 3 * forward if self.differentiates else forward

    def lengths(self) -> Tensor | None:
        """Of the sequences, longest first; None: all have every step."""
        if not self.packed:
            return None
        return torch.linspace(self.steps, max(1, self.steps // 4), self.batch).round().long()

    @property
    def useful(self) -> float:
        """The share of time steps that is not padding."""
        lengths = self.lengths()
        return 1.0 if lengths is None else lengths.sum().item() / (self.steps * self.batch)

    @property
    def differentiates(self) -> bool:
        return self.mode in ("training", "per-sample")

    def mode_of_torch(self) -> AbstractContextManager:
        """What the calls of every side are made under."""
        return torch.inference_mode(not self.differentiates)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def shortened(self, flops: float) -> Problem:
        """The same with fewer time steps, for a check that takes at most so many operations."""
        steps = max(2, int(self.steps * flops / self.flops))
        return self if steps >= self.steps else dataclasses.replace(self, steps=steps)


class Data:
    """What all sides of a problem get: weights (those of a ``torch.nn`` layer), inputs, the incoming gradient."""

    def __init__(self, problem: Problem, inputs: int = 1, seed: int = 0):
        dtype, device = getattr(torch, problem.dtype), problem.device
        generator = torch.Generator(device).manual_seed(seed)
        steps, batch = problem.steps, problem.batch

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        options = {"proj_size": problem.projection} if problem.projection else {}
        sizes = (problem.input_size, problem.hidden, problem.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [
                CLASSES[problem.cell](*sizes, bidirectional=problem.bidirectional, **options)
                for _ in range(problem.members)
            ]
        training = problem.differentiates
        self.problem = problem
        self.layers = [layer.to(device, dtype).requires_grad_(training).train(training) for layer in made]
        self.layer = self.layers[0]
        self.weights = list(self.layer.parameters())
        self.lengths = problem.lengths()
        self.reset_mask: Tensor | None = None
        if problem.reset:
            self.reset_mask = torch.rand(steps, batch, generator=generator, device=device) < problem.reset
        self.inputs = [random(steps, batch, problem.input_size) for _ in range(inputs)]
        directions = 2 if problem.bidirectional else 1
        rows, width = problem.layers * directions, problem.projection or problem.hidden
        self.state: tuple[Tensor, ...] = ()  # none: zeros
        if problem.mode == "step":
            self.state = (random(rows, batch, width),)
            if problem.cell == "lstm":
                self.state += (random(rows, batch, problem.hidden),)
        self.d_y = random(steps, batch, directions * width)
        if self.lengths is not None:
            self.d_y = self.packed(self.d_y).data

    def packed(self, padded: Tensor) -> PackedSequence:
        return pack_padded_sequence(padded, self.lengths)

    def leaves(self) -> list[tuple[Tensor, Tensor | PackedSequence]]:
        """Per input: the tensor to differentiate by, and what a layer is called with."""
        leaves = []
        for x in self.inputs:
            if self.lengths is None:
                leaf = called = x.requires_grad_(self.problem.mode == "training")
            else:
                packed = self.packed(x.detach())
                leaf = packed.data.requires_grad_(self.problem.mode == "training")
                called = PackedSequence(leaf, packed.batch_sizes)
            leaves.append((leaf, called))
        return leaves


def grid(**options: Any) -> Iterator[Problem]:
    """The product of the given lists; what is no list is the same everywhere."""
    lists = [value if isinstance(value, list) else [value] for value in options.values()]
    for values in itertools.product(*lists):
        yield Problem(**dict(zip(options, values, strict=True)))


BOTH = ["inference", "training"]
GATED = ["lstm", "gru"]
CELLS = ["lstm", "gru", "rnn"]


def quick() -> Iterator[Problem]:
    for hidden, batch in [(32, 1), (128, 1), (256, 1), (256, 64)]:
        yield from grid(cell=GATED, hidden=hidden, batch=batch, steps=100)
    for hidden, batch in [(64, 1), (128, 16)]:
        yield from grid(cell=GATED, hidden=hidden, batch=batch, steps=100, mode="training")
    yield from grid(cell=GATED, hidden=32, batch=1, steps=1, mode="step")
    yield from grid(cell=GATED, hidden=128, batch=32, steps=100, mode="training", packed=True)


def packed() -> Iterator[Problem]:
    yield from grid(cell=GATED, hidden=128, batch=32, steps=1000, mode="training", packed=True)


def full_grid() -> Iterator[Problem]:
    sizes = {"cell": CELLS, "hidden": [32, 64, 128, 129, 160, 192, 256, 512, 768, 1024], "steps": 100}
    yield from grid(**sizes, batch=[1, 16, 64, 256], mode=BOTH)
    yield from grid(**sizes, batch=[1, 16], mode=BOTH, dtype="bfloat16")


def deepbench() -> Iterator[Problem]:
    """https://github.com/baidu-research/DeepBench: its training, server and device problems."""
    lstm = [([512, 1024, 2048, 4096], [16, 32, 64, 128], 25), ([1536], [8, 16, 32], 50), ([256], [16, 32, 64], 150)]
    gru = [([2816, 2048, 1536, 2560], 187), ([1024], 187), ([1024], 1500), ([512], 1)]
    for hidden, batch, steps in lstm:
        yield from grid(cell="lstm", hidden=hidden, batch=batch, steps=steps, mode="training")
    for hidden, steps in gru:
        yield from grid(cell="gru", hidden=hidden, batch=32, steps=steps, mode="training")
    yield from grid(cell="rnn", hidden=[1760, 2048, 2560], batch=[16, 32, 64, 128], steps=50, mode="training")
    for hidden, _, steps in lstm:
        yield from grid(cell="lstm", hidden=hidden, batch=[1, 2, 4], steps=steps)
    for hidden, steps in gru:
        yield from grid(cell="gru", hidden=hidden, batch=[1, 2, 4], steps=steps)
    yield Problem("lstm", hidden=256, batch=1, steps=150)


def shapes() -> Iterator[Problem]:
    """Everything that is not one plain layer."""
    plain = {"cell": GATED, "hidden": 256, "mode": BOTH}
    yield from grid(**plain, batch=16, steps=100, bidirectional=True)
    yield from grid(**plain, batch=16, steps=100, layers=4)
    yield from grid(**plain, batch=32, steps=128, packed=True)
    yield from grid(**plain, batch=128, steps=128, reset=0.03)
    yield from grid(cell="lstm", hidden=256, mode=BOTH, batch=16, steps=100, projection=128)
    yield from grid(**plain, batch=16, steps=1)
    yield from grid(**plain, batch=16, steps=4000)


def goals() -> Iterator[Problem]:
    """What the goals speak of and no other suite that takes minutes has."""
    yield from grid(cell=CELLS, hidden=[32, 64, 128, 256], batch=1, steps=1, mode="step")
    yield from grid(cell="lstm", hidden=[32, 64, 128], batch=[1, 4], steps=[100, 400], mode="training")
    yield from grid(cell=GATED, hidden=[512, 1024], batch=1, steps=100, dtype=["float32", "bfloat16"])


def composed() -> Iterator[Problem]:
    """Where what is around the kernels counts: a call, a compiled one, `torch.func`'s transforms, loops over cells."""
    yield from grid(cell=GATED, hidden=32, batch=1, steps=1, mode=BOTH)
    yield from grid(cell=GATED, hidden=256, batch=16, steps=100, mode=BOTH)
    yield from grid(cell=GATED, input=8, hidden=64, batch=32, steps=16, members=8, mode=BOTH)
    yield from grid(cell=GATED, hidden=64, batch=32, steps=32, mode="per-sample")
    for hidden, batch in [(32, 1), (128, 16)]:
        yield from grid(cell=CELLS, hidden=hidden, batch=batch, steps=10, mode=BOTH, cells=True)


def gpu() -> Iterator[Problem]:
    """The part of the grid that a GPU gets through in minutes."""
    sizes = {"hidden": [64, 128, 256, 512, 1024], "batch": [1, 16, 64], "steps": 100}
    for dtype in ["float32", "bfloat16"]:
        yield from grid(cell=GATED, **sizes, mode=BOTH, dtype=dtype)


SUITES = {
    "quick": quick,
    "packed": packed,
    "grid": full_grid,
    "deepbench": deepbench,
    "shapes": shapes,
    "goals": goals,
    "composed": composed,
    "gpu": gpu,
}


def select(
    suite: str, device: str = "cpu", dtype: str | None = None, mode: str = "all", only: str | None = None
) -> list[Problem]:
    """The problems of a suite on a device. A dtype replaces those of the suite; ``only`` finds something in a name."""
    problems = [dataclasses.replace(p, device=device, dtype=dtype or p.dtype) for p in SUITES[suite]()]
    return [p for p in dict.fromkeys(problems) if mode in ("all", p.mode) and re.search(only or "", p.name)]
