"""What every test of another package's model asks of `convert`: nothing changes but the time."""

import copy
import statistics
import time

import torch
from torch import nn

import rnnkern
from comparison import random_like, tensors_of
from rnnkern import reference
from rnnkern.cells import RecurrentCell
from rnnkern.modules import Recurrent


def outputs_and_gradients(model, run, dtype):
    """Every tensor that `run(model, dtype)` gives, and gradients of their random combination to the parameters."""
    torch.manual_seed(0)  # dropout draws the same masks
    outputs = [output for output in tensors_of(run(model, dtype)) if output.requires_grad]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(outputs, parameters, random_like(outputs), allow_unused=True)
    return [output.detach() for output in outputs], gradients


def assert_same(found, expected):
    """Within the table of tolerances for gradients, tensor by tensor.

    What is zero but for rounding (the gradient of a bias before a normalisation) has no scale of its own: a tensor is
    compared on at least a thousandth of the scale of the largest.
    """
    assert [one is None for one in found] == [other is None for other in expected]
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if other is not None]
    least = 1e-3 * max(other.norm() for _, other in pairs)
    for one, other in pairs:
        ceiling = reference.TOLERANCE[str(other.dtype).removeprefix("torch.")] * reference.GRADIENT_FACTOR
        assert (one - other).norm() <= ceiling * max(other.norm(), least)


def train_step(model, run, dtype):
    # Not Adam: it makes a step of the rounding in a gradient that is zero, as that of a bias before a softmax.
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(1)
    loss = sum(output.square().mean() for output in tensors_of(run(model, dtype)) if output.requires_grad)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def check(name, model, run, layers, capsys, dtype=torch.double):
    """Outputs, gradients, a training step and what follows it are equal; prints the time of a step in float32.

    Args:
        run: `run(model, dtype)` calls the model on the same input every time and gives its outputs.
        layers: how many recurrent layers and cells `convert` is to swap.
        dtype: to compare in; double tells rounding from mistakes best.
    """
    before = copy.deepcopy(model).to(dtype)
    after = rnnkern.convert(before, inplace=False)
    recurrent = [module for module in after.modules() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))]
    assert len(recurrent) == layers and all(isinstance(module, (Recurrent, RecurrentCell)) for module in recurrent)
    for training in (False, True):
        before.train(training)
        after.train(training)
        for found, expected in zip(*(outputs_and_gradients(m, run, dtype) for m in (after, before)), strict=True):
            assert_same(found, expected)
    assert_same([train_step(after, run, dtype)], [train_step(before, run, dtype)])
    assert_same(list(after.parameters()), list(before.parameters()))
    assert_same(*(outputs_and_gradients(m, run, dtype)[0] for m in (after, before)))

    pair = [before.float(), after.float()]
    seconds = [[], []]
    for _ in range(7):
        for module, taken in zip(pair, seconds, strict=True):
            start = time.perf_counter()
            train_step(module, run, torch.float)
            taken.append(time.perf_counter() - start)
    ms = [1e3 * statistics.median(taken) for taken in seconds]
    with capsys.disabled():
        print(f"\n{name}: a training step {ms[0]:.1f} ms before, {ms[1]:.1f} ms after ({ms[0] / ms[1]:.2f}×)")
