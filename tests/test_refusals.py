"""What no layer can be or become, whatever its tensors, is refused with one error that says what was expected."""

import numpy as np
import pytest
import torch
from torch import nn

import rnnkern
from comparison import assert_refused

X = torch.zeros(6, 4, 5)
LSTM, GRU, RNN = rnnkern.LSTM, rnnkern.GRU, rnnkern.RNN


def in_strategy(name):
    with rnnkern.strategy(name):
        pass


CONSTRUCTION = {
    "heads=0": (lambda: LSTM(5, 8, heads=0), ValueError, "heads must be at least 1, got 0"),
    "recompute='x'": (lambda: LSTM(5, 8, recompute="x"), TypeError, "recompute should be of type bool, got: str"),
    "reset_after=1": (lambda: GRU(5, 8, reset_after=1), TypeError, "reset_after should be of type bool, got: int"),
    "forget_bias='a'": (lambda: LSTM(5, 8, forget_bias="a"), TypeError, "forget_bias should be a number, got: str"),
    "num_layers=1.5": (
        lambda: rnnkern.functional.rnn(torch.ones(3, 1, 2), None, list(RNN(2, 4).parameters()), num_layers=1.5),
        TypeError,
        "num_layers should be of type int, got: float",
    ),
    "weights without rows": (
        lambda: rnnkern.functional.rnn(torch.ones(3, 1, 2), None, [torch.ones(0, 2), torch.ones(0, 0)]),
        ValueError,
        "weights[0]: expected 1 * hidden_size rows, got 0",
    ),
    "heads=2.0": (lambda: LSTM(5, 8, heads=2.0), TypeError, "heads should be of type int, got: float"),
    "heads=3": (
        lambda: GRU(5, 8, heads=3),
        ValueError,
        "hidden_size must be divisible by heads, got hidden_size=8 and heads=3",
    ),
    "heads and proj_size": (
        lambda: LSTM(5, 8, heads=2, proj_size=4),
        ValueError,
        "heads=2 cannot be combined with proj_size",
    ),
    "zoneout=1.5": (lambda: RNN(5, 8, zoneout=1.5), ValueError, "zoneout should be a number in range [0, 1], got 1.5"),
    "recurrent_dropout=-1": (
        lambda: RNN(5, 8, recurrent_dropout=-1),
        ValueError,
        "recurrent_dropout should be a number in range [0, 1], got -1",
    ),
    "weight_dropout=True": (
        lambda: GRU(5, 8, weight_dropout=True),
        ValueError,
        "weight_dropout should be a number in range [0, 1], got True",
    ),
    "dropout=2": (
        lambda: GRU(5, 8, 2, dropout=2.0),
        ValueError,
        "dropout should be a number in range [0, 1] representing the probability of an element being zeroed",
    ),
    "forget_bias without biases": (
        lambda: LSTM(5, 8, bias=False, forget_bias=1.0),
        ValueError,
        "forget_bias needs bias=True: there is no bias to set",
    ),
    "forget_bias of a GRU": (
        lambda: GRU(5, 8, forget_bias=1.0),
        TypeError,
        "GRU.__init__() got an unexpected keyword argument 'forget_bias'",
    ),
    "reset_after of an LSTM": (
        lambda: LSTM(5, 8, reset_after=False),
        TypeError,
        "LSTM.__init__() got an unexpected keyword argument 'reset_after'",
    ),
    "proj_size of a GRU": (
        lambda: GRU(5, 8, proj_size=3),
        ValueError,
        "proj_size argument is only supported for LSTM, not RNN or GRU",
    ),
    "proj_size=8": (lambda: LSTM(5, 8, proj_size=8), ValueError, "proj_size has to be smaller than hidden_size"),
    "nonlinearity": (
        lambda: RNN(5, 8, nonlinearity="swish"),
        ValueError,
        "Unknown nonlinearity 'swish'. Select from 'tanh', 'relu' or 'sigmoid'.",
    ),
}

UNSUPPORTED = {
    "torch.jit.script": (
        lambda: torch.jit.script(nn.Sequential(LSTM(5, 8))),
        RuntimeError,
        "torch.jit.script cannot take rnnkern.LSTM, TorchScript has no operator for it: "
        "script layer.to_torch(), the equal torch.nn layer",
    ),
    "torch.jit.script of a cell": (
        lambda: torch.jit.script(rnnkern.GRUCell(5, 8)),
        RuntimeError,
        "torch.jit.script cannot take rnnkern.GRUCell, TorchScript has no operator for it: "
        "script cell.to_torch(), the equal torch.nn cell",
    ),
    "torch.jit.script of int8 weights": (
        lambda: torch.jit.script(rnnkern.quantize_dynamic(LSTM(5, 8))),
        RuntimeError,
        "torch.jit.script cannot take a layer of int8 weights, TorchScript has no operator for it: "
        "script to_torch() of the layer that it was made of",
    ),
    **{
        f"to_torch with {keyword}": (
            lambda cls=cls, keyword=keyword, value=value: cls(5, 8, **{keyword: value}).to_torch(),
            ValueError,
            f"torch.nn has no {cls.__name__} with {keyword}={value!r}",
        )
        for cls, keyword, value in [
            (LSTM, "heads", 2),
            (GRU, "zoneout", 0.1),
            (LSTM, "recurrent_dropout", 0.1),
            (LSTM, "weight_dropout", 0.1),
            (GRU, "reset_after", False),
            (RNN, "nonlinearity", "sigmoid"),
        ]
    },
    "a layer of torch.nn in plan": (
        lambda: rnnkern.plan(nn.LSTM(5, 8), X),
        TypeError,
        "layer must be a layer or a cell of rnnkern, got torch.nn.modules.rnn.LSTM; "
        "rnnkern.convert() swaps those of torch.nn",
    ),
    "an unknown strategy": (
        lambda: in_strategy("magic"),
        ValueError,
        f"strategy: expected one of {', '.join(rnnkern.strategies())}, got 'magic'",
    ),
}

ALL = {**CONSTRUCTION, **UNSUPPORTED}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(("call", "kind", "message"), ALL.values(), ids=ALL.keys())
def test_a_mistake_raises_one_clear_error(call, kind, message):
    assert_refused(call, kind, message)


def test_numbers_of_every_kind_are_probabilities():
    layer = RNN(5, 8, recurrent_dropout=np.float32(0.5), weight_dropout=np.float32(0.5), zoneout=np.float32(0.5))
    for training in (True, False):
        layer.train(training)(torch.randn(3, 2, 5))[0].sum().backward()
        with torch.no_grad():
            layer(torch.randn(3, 2, 5))
