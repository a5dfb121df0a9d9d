"""PyTorch's own inputs and error inputs for its recurrent layers and cells, on rnnkern's classes: none is exempt."""

import pytest
import torch
from torch import nn

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import rnnkern
from comparison import assert_close, outputs_and_gradients, to_double

INFOS = [
    info for info in module_db if info.module_cls in (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
]
# Those of torch 2.13, packed ones too.
COUNTS = {"RNN": 64, "GRU": 32, "LSTM": 32, "RNNCell": 3, "GRUCell": 2, "LSTMCell": 2}

every_module = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def ours(info):
    return getattr(rnnkern, info.module_cls.__name__)


def make(cls, sample, device, dtype, training):
    torch.manual_seed(0)
    constructor = sample.constructor_input
    module = cls(*constructor.args, **{"device": device, "dtype": dtype, **constructor.kwargs})
    return module.train(training)


def one_vector(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def raised_by(cls, sample, device, dtype, training):
    """Type and message of the error where it is due: in the constructor or in forward."""
    wrong = sample.module_error_input
    module = None
    if sample.error_on == ModuleErrorEnum.FORWARD_ERROR:
        module = make(cls, wrong, device, dtype, training)
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        if module is None:
            make(cls, wrong, device, dtype, training)
        else:
            module(*wrong.forward_input.args)
    return caught.type, str(caught.value)


@every_module
@every_dtype
@every_mode
def test_every_input_gives_torchs_outputs_and_gradients(info, dtype, training, device):
    samples = list(
        info.module_inputs_func(
            info, device=device, dtype=dtype, requires_grad=True, training=training, with_packed_sequence=True
        )
    )
    assert len(samples) >= COUNTS[info.module_cls.__name__]
    for sample in samples:
        module = make(ours(info), sample, device, dtype, training)
        theirs = make(info.module_cls, sample, device, dtype, training).double()
        assert not sample.forward_input.kwargs
        expected, expected_gradients = outputs_and_gradients(theirs, *to_double(sample.forward_input.args))
        found, gradients = outputs_and_gradients(module, *sample.forward_input.args)
        assert_close(found, expected, dtype)
        # As one vector: inputs up to 9 saturate tanh, and 1 - h² cancels in what little gradient passes there.
        assert_close(one_vector(gradients), one_vector(expected_gradients), dtype, gradient=True)


@every_module
@every_dtype
@every_mode
def test_every_error_input_raises_torchs_error(info, dtype, training, device):
    samples = list(
        info.module_error_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=training)
    )
    assert samples
    for sample in samples:
        expected, found = (raised_by(cls, sample, device, dtype, training) for cls in (info.module_cls, ours(info)))
        assert found == expected
        assert found[0] is sample.error_type
