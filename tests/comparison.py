"""Comparisons with torch.nn in double, and per sample, that several test files share."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

import rnnkern
from rnnkern import reference

LAYERS = ("LSTM", "GRU", "RNN")


def tensors_of(tree):
    """Every tensor of nested results, a PackedSequence as its data."""
    leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, PackedSequence))
    leaves = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def error(found, expected):
    """‖found − expected‖ / ‖expected‖, of the difference itself where nothing is expected."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).norm()
    norm = expected.double().norm()
    return (difference / norm if norm > 0 else difference).item()


def assert_close(found, expected, dtype=torch.float64, gradient=False):
    """Within the library's table of tolerances for `dtype`, tensor by tensor."""
    ceiling = reference.TOLERANCE[str(dtype).removeprefix("torch.")] * (reference.GRADIENT_FACTOR if gradient else 1)
    found, expected = tensors_of(found), tensors_of(expected)
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == dtype
        assert error(one, other) <= ceiling, f"tensor {index}"


def assert_refused(call, kind, message):
    """The call raises exactly this error."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert str(caught.value) == message


def pair(name, *arguments, dtype=torch.float64, device="cpu", **keywords):
    """`(rnnkern's, torch's)` with equal parameters; torch's computes in double."""
    torch.manual_seed(0)
    ours = getattr(rnnkern, name)(*arguments, **keywords, dtype=dtype, device=device)
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*arguments, **keywords, dtype=dtype, device=device)
    return ours, theirs.double()


def to_double(tree):
    """A copy in double; what required a gradient requires one."""

    def convert(leaf):
        if isinstance(leaf, PackedSequence):
            return leaf._replace(data=convert(leaf.data))
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.detach().double().requires_grad_(leaf.requires_grad)

    return pytree.tree_map(convert, tree, is_leaf=lambda node: isinstance(node, PackedSequence))


def random_like(tensors):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t.device, t.dtype) for t in tensors]


def without_cudnn():
    """torch.nn without cuDNN, which refuses backward in eval mode and double backward; TF32 stays off."""
    return torch.backends.cudnn.flags(enabled=False, allow_tf32=False)


def outputs_and_gradients(module, *arguments, **keywords):
    """All results of a call, and gradients of their random combination to every leaf and parameter."""
    with without_cudnn():
        outputs = tensors_of(module(*arguments, **keywords))
    leaves = [t for t in tensors_of((arguments, keywords)) if t.requires_grad] + list(module.parameters())
    gradients = torch.autograd.grad(outputs, leaves, random_like(outputs))
    return [output.detach() for output in outputs], list(gradients)


def assert_equal_to_torch(ours, theirs, *arguments, dtype=torch.float64):
    """`theirs`, in double, gives the expected outputs and gradients of `ours(*arguments)`."""
    expected, expected_gradients = outputs_and_gradients(theirs, *to_double(arguments))
    found, gradients = outputs_and_gradients(ours, *arguments)
    assert_close(found, expected, dtype)
    assert_close(gradients, expected_gradients, dtype, gradient=True)


def states(layer, batch, dtype=torch.float64, device="cpu", requires_grad=True, seed=3):
    """Random initial states; `batch` None for unbatched input."""
    generator = torch.Generator().manual_seed(seed)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)

    def state(width):
        shape = (rows, width) if batch is None else (rows, batch, width)
        return torch.randn(shape, dtype=dtype, generator=generator).to(device).requires_grad_(requires_grad)

    h = state(layer.proj_size or layer.hidden_size)
    return (h, state(layer.hidden_size)) if layer.mode == "LSTM" else h


def pick(hx, rows):
    """The states of some samples."""
    return tuple(state[:, rows] for state in hx) if isinstance(hx, tuple) else hx[:, rows]
