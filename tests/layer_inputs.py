"""The layers and the inputs that the tests of the modules run over."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkern
from comparison import LAYERS

VARIANTS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True, "num_layers": 2},
    {"bidirectional": True, "bias": False},
]
CASES = [(name, variant) for name in LAYERS for variant in VARIANTS] + [
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "bias": False, "batch_first": True}),
]
every_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=lambda value: str(value).replace(" ", ""))
every_layer = pytest.mark.parametrize("name", LAYERS)
LENGTHS = [3, 0, 6, 1]


def padded(dtype=torch.float64, device="cpu", steps=6, batch=4, size=5, batch_first=False):
    generator = torch.Generator().manual_seed(11)
    shape = (batch, steps, size) if batch_first else (steps, batch, size)
    return torch.randn(shape, dtype=dtype, generator=generator).to(device)


def packed(dtype=torch.float64, device="cpu", lengths=(3, 6, 1, 4)):
    return pack_padded_sequence(padded(dtype, device), torch.tensor(lengths), enforce_sorted=False)


def make(name, *arguments, **keywords):
    torch.manual_seed(0)
    return getattr(rnnkern, name)(*arguments, **{"dtype": torch.float64, **keywords})
