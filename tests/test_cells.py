"""The cells are torch.nn's, refuse what does not fit, and give results that can be changed in place."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import rnnkern
from comparison import (
    assert_close,
    assert_equal_to_torch,
    outputs_and_gradients,
    random_like,
    tensors_of,
    to_double,
)
from helpers import OperatorCalls

CASES = [
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
]
every_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
every_cell = pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])


def pair(name, dtype=torch.float64, device="cpu", **variant):
    torch.manual_seed(0)
    ours = getattr(rnnkern, name)(5, 8, **variant, dtype=dtype, device=device)
    torch.manual_seed(0)
    return ours, getattr(nn, name)(5, 8, **variant, dtype=dtype, device=device).double()


def inputs(name, batched=True, dtype=torch.float64, device="cpu"):
    shape = (4,) if batched else ()
    x, h, c = (torch.randn(*shape, size, dtype=torch.float64).to(device, dtype).requires_grad_() for size in (5, 8, 8))
    return x, (h, c) if name == "LSTMCell" else h


def near_the_kink(cell, x, h):
    """Whether rounding may move a sum to relu's other side, with a state or without: the gradient jumps there."""
    from_x, from_h = x.double() @ cell.weight_ih.t(), h.double() @ cell.weight_hh.t()
    return min(from_x.abs().min(), (from_x + from_h).abs().min()) < 0.02


@every_case
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outputs_and_gradients_equal_torchs(name, variant, batched, dtype, device):
    ours, theirs = pair(name, dtype, device, **variant)
    x, hx = inputs(name, batched, dtype, device)
    while variant.get("nonlinearity") == "relu" and near_the_kink(theirs, x, hx):
        x, hx = inputs(name, batched, dtype, device)
    assert_equal_to_torch(ours, theirs, x, hx, dtype=dtype)
    assert_equal_to_torch(ours, theirs, x, dtype=dtype)


@every_cell
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_one_of_two_biases_may_be_missing(name, missing):
    ours, theirs = pair(name)
    for cell in (ours, theirs):
        setattr(cell, missing, None)
    assert_equal_to_torch(ours, theirs, *inputs(name))
    x, hx = inputs(name)
    with torch.no_grad():
        assert_close(tensors_of(ours(x, hx)), tensors_of(theirs(x, hx)))


@every_case
def test_parameters_and_repr_are_torchs(name, variant):
    ours, theirs = pair(name, **variant)
    assert repr(ours) == repr(theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    clone = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    x, hx = inputs(name)
    assert_close(clone(x, hx), theirs(x, hx))


@every_cell
@pytest.mark.parametrize("batched", [True, False])
def test_results_can_be_changed_in_place(name, batched):
    ours, theirs = pair(name)
    x, hx = inputs(name, batched)
    found, expected = tensors_of(ours(x, hx)), tensors_of(theirs(x, hx))
    assert not any(result._is_view() for result in found)
    found, expected = [t.relu_() for t in found], [t.relu() for t in expected]
    assert_close(found, expected)
    leaves = [x, *tensors_of(hx)]
    assert_close(
        torch.autograd.grad(sum(t.sum() for t in found), leaves + list(ours.parameters())),
        torch.autograd.grad(sum(t.sum() for t in expected), leaves + list(theirs.parameters())),
    )


@every_cell
def test_lists_strides_and_empty_batches_are_accepted(name):
    ours, theirs = pair(name)
    x, hx = inputs(name)
    if name == "LSTMCell":
        assert_close(ours(x, list(hx)), theirs(x, hx))
    wide = torch.zeros(4, 11, dtype=torch.float64)
    wide[:, 1::2] = x.detach()
    assert_close(ours(wide[:, 1::2], hx), theirs(x, hx))
    assert all(result.shape == (0, 8) for result in tensors_of(ours(x[:0])))


@every_cell
def test_a_loop_over_cells_trains_as_torchs(name):
    ours, theirs = pair(name)
    x = torch.randn(7, 4, 5, dtype=torch.float64)

    class Loop(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            hx = None
            for step in x:
                hx = self.cell(step, hx)
            return hx

    assert_equal_to_torch(Loop(ours), Loop(theirs), x.requires_grad_())


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_results_have_its_dtype(name, dtype):
    ours, _ = pair(name, torch.float32)
    x, hx = inputs(name, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        found = tensors_of(ours(x, hx))
    low = copy.deepcopy(ours).to(dtype)
    expected = low(x.to(dtype), tuple(h.to(dtype) for h in hx) if name == "LSTMCell" else hx.to(dtype))
    assert all(torch.equal(one, other) for one, other in zip(found, tensors_of(expected), strict=True))
    found[0].sum().backward()
    assert ours.weight_ih.grad.dtype == torch.float32


@every_cell
def test_under_autocast_parameters_are_cast_once(name):
    ours, _ = pair(name, torch.float32)
    x, hx = inputs(name, dtype=torch.float32)
    kept = []

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.shape == ours.weight_hh.shape:
            kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.no_grad():
            ours(x, hx)  # leaves nothing that the others would get no gradient through
        for _ in range(3):
            hx = ours(x, hx)
    assert len(kept) == 3 and len({tensor.data_ptr() for tensor in kept}) == 1
    tensors_of(hx)[0].float().sum().backward()
    assert ours.weight_hh.grad.dtype == torch.float32 and ours.weight_hh.grad.any()


@every_cell
def test_a_parametrisation_is_evaluated_once_a_call(name):
    ours, theirs = pair(name)
    x, hx = inputs(name)
    found = []
    for cell in (ours, theirs):
        torch.manual_seed(1)
        nn.utils.parametrizations.spectral_norm(cell, "weight_hh")
        nn.utils.parametrize.register_parametrization(cell, "bias_ih", nn.Dropout(0.5))
        found.append(tensors_of(cell(x, hx)))
    assert_close(*found)


@every_cell
def test_cells_compile_export_and_transform(name):
    ours, _ = pair(name)
    x, hx = (to_double(tree) for tree in inputs(name))
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, hx), ours(x, hx))
    assert_close(torch.export.export(ours, (x, hx), strict=False).module()(x, hx), ours(x, hx))
    stacked = torch.stack([x, 2 * x])
    found = torch.func.vmap(ours)(stacked)
    assert_close([t[1] for t in tensors_of(found)], ours(2 * x))
    weights = {key: 2 * value for key, value in ours.named_parameters()}
    doubled = copy.deepcopy(ours)
    doubled.load_state_dict(weights)
    assert_close(torch.func.functional_call(ours, weights, (x, hx)), doubled(x, hx))


@every_cell
def test_double_backward(name):
    ours, theirs = pair(name)
    x, hx = inputs(name)

    def second(cell):
        (d_x,) = torch.autograd.grad(sum(t.square().sum() for t in tensors_of(cell(x, hx))), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), [x, *tensors_of(hx), cell.weight_ih])

    assert_close(second(ours), second(theirs), gradient=True)


def results_and_gradients(cell, x, hx, needs=None):
    """Bit by bit what one call gives, and the gradients that `needs` names (`x`, `h`, a parameter), or all."""
    states = dict(zip("hc", tensors_of(hx), strict=False))
    leaves = {"x": x, **states, **dict(cell.named_parameters())}
    for key, leaf in leaves.items():
        leaf.requires_grad_(needs is None or key in needs)
    results = tensors_of(cell(x, hx) if states else cell(x))
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return results, torch.autograd.grad(results, wanted, random_like(results))


def assert_equal_to_the_operators(cell, x, hx, direct, needs=None):
    with OperatorCalls() as operators:
        expected, expected_gradients = results_and_gradients(cell, x, hx, needs)
    assert operators.names == ["layer_forward", "layer_backward"]
    direct()
    found, gradients = results_and_gradients(cell, x, hx, needs)
    for one, other in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        assert torch.equal(one, other)


@every_case
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("needs", [None, ["x"], ["weight_hh"], ["h", "bias_ih"]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_the_operators(name, variant, batched, given, needs, dtype, device, direct):
    cell, _ = pair(name, dtype, device, **variant)
    x, hx = inputs(name, batched, dtype, device)
    if needs == ["h", "bias_ih"] and not (given and variant.get("bias", True)):
        needs = ["x", "weight_ih"]
    assert_equal_to_the_operators(cell, x, hx if given else None, direct, needs)


@every_cell
@pytest.mark.parametrize("batch", [0, 64])
def test_bits_are_those_of_the_operators_in_other_sizes(name, batch, device, direct):
    cell = getattr(rnnkern, name)(200, 300, device=device)
    x, h, c = (torch.randn(batch, size, device=device) for size in (200, 300, 300))
    assert_equal_to_the_operators(cell, x, (h, c) if name == "LSTMCell" else h, direct)


@every_cell
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_gradients_of_one_result_alone(name, batched, given):
    ours, theirs = pair(name)
    x, hx = inputs(name, batched)
    for which in range(len(tensors_of(hx))):
        leaves = [x, *(tensors_of(hx) if given else [])]
        found, expected = (
            torch.autograd.grad(tensors_of(cell(x, hx) if given else cell(x))[which].sum(), [*leaves, cell.weight_hh])
            for cell in (ours, theirs)
        )
        assert_close(found, expected, gradient=True)


def flat(cell, x, hx):
    """`(function, leaves)`: a cell's results as a function of its input, states and parameters."""
    names, parameters = zip(*cell.named_parameters(), strict=True)
    states = tensors_of(hx)

    def function(x, *rest):
        given = rest[: len(states)]
        hx = () if not given else (given if len(given) == 2 else given[0],)
        weights = dict(zip(names, rest[len(states) :], strict=True))
        results = tensors_of(torch.func.functional_call(cell, weights, (x, *hx)))
        assert all(type(result.grad_fn).__name__ == "CellStepBackward" for result in results)
        return tuple(results)

    return function, (x, *states, *parameters)


@every_case
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_all_second_derivatives(name, variant, batched, given):
    if variant.get("nonlinearity") == "relu":
        variant = {**variant, "nonlinearity": "tanh"}  # relu's are zero
    cell, _ = pair(name, **variant)
    x, hx = inputs(name, batched)
    assert torch.autograd.gradgradcheck(*flat(cell, x, hx if given else None), fast_mode=True)


@every_cell
@pytest.mark.parametrize("batched", [True, False])
def test_gradients_of_a_batch_of_gradients(name, batched):
    ours, theirs = pair(name)
    x, hx = inputs(name, batched)
    directions = torch.randn(3, *tensors_of(hx)[0].shape, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(
            tensors_of(cell(x, hx))[0],
            [x, *tensors_of(hx), *cell.parameters()],
            directions,
            is_grads_batched=True,
            allow_unused=True,
        )
        for cell in (ours, theirs)
    )
    assert_close(found, expected, gradient=True)


@every_cell
def test_tangents_of_gradients(name):
    x, hx = inputs(name)
    found = []
    for cell in pair(name):
        result = tensors_of(cell(x, hx))[0]
        with forward_ad.dual_level():
            incoming = forward_ad.make_dual(torch.ones_like(result), torch.full_like(result, 2.0))
            (d_x,) = torch.autograd.grad(result, x, incoming)
            found.append(forward_ad.unpack_dual(d_x))
    assert_close([t.tangent for t in found], [2 * t.primal for t in found[::-1]], gradient=True)


@every_cell
def test_a_graph_is_kept_and_freed(name):
    cell, _ = pair(name)
    x, hx = inputs(name)
    results = tensors_of(cell(x, hx))
    once, twice = (torch.autograd.grad(results, x, random_like(results), retain_graph=keep) for keep in (True, False))
    assert torch.equal(*once, *twice)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(results, x, random_like(results))


@every_cell
@pytest.mark.parametrize("changed", ["x", "h", "weight_hh"])
def test_what_backward_reads_may_not_change(name, changed):
    cell, _ = pair(name)
    x, hx = inputs(name)
    results = tensors_of(cell(x, hx))
    with torch.no_grad():
        {"x": x, "h": tensors_of(hx)[0], "weight_hh": cell.weight_hh}[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(results, x, random_like(results))


@every_cell
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(name, reentrant):
    cell, _ = pair(name)
    x, hx = inputs(name)
    expected = torch.autograd.grad(tensors_of(cell(x, hx))[0].sum(), list(cell.parameters()))
    tensors_of(checkpoint(cell, x, hx, use_reentrant=reentrant))[0].sum().backward()
    assert all(torch.equal(p.grad, one) for p, one in zip(cell.parameters(), expected, strict=True))


@every_cell
def test_hooks_on_saved_tensors(name):
    cell, _ = pair(name)
    x, hx = inputs(name)
    expected = results_and_gradients(cell, x, hx)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.movedim(0, -1).clone(), lambda t: t.movedim(-1, 0)):
        found = results_and_gradients(cell, x, hx)
    assert all(torch.equal(*pair) for pair in zip(tensors_of(found), tensors_of(expected), strict=True))

    calls = []

    def full(tensor):
        calls.append(tensor)
        raise RuntimeError("no room")

    with torch.autograd.graph.saved_tensors_hooks(full, full), pytest.raises(RuntimeError, match="no room"):
        cell(x, hx)
    assert len(calls) == 1


@every_cell
def test_to_torch_shares_parameters(name):
    ours, _ = pair(name)
    back = ours.eval().to_torch()
    assert type(back) is getattr(nn, name) and not back.training
    assert all(one is other for one, other in zip(ours.parameters(), back.parameters(), strict=True))
    x, hx = inputs(name)
    assert_close(outputs_and_gradients(ours, x, hx), outputs_and_gradients(back, x, hx))


@every_cell
def test_a_meta_cell_knows_its_shapes(name):
    results = tensors_of(getattr(rnnkern, name)(5, 8, device="meta")(torch.empty(4, 5, device="meta")))
    assert all(result.is_meta and result.shape == (4, 8) for result in results)
