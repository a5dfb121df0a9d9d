"""Operators, layers and cells under torch.compile: no break in the graph, and no second one for other sizes."""

import copy

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import helpers
import rnnkern
from comparison import assert_close, outputs_and_gradients, pair, states, tensors_of
from helpers import Layer, inputs_of, loss, problem, requiring_gradients, two_cells
from layer_inputs import every_layer, packed, padded

every_backend = pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
every_schedule = pytest.mark.parametrize("schedule", ["plain", "lengths+reset"])
no_recompilation = torch._dynamo.config.patch(error_on_recompile=True)

# T and B. The first sizes are none of the layers' (5, 8, 4), as the compiler would tie equal ones together.
SIZES = [(7, 3), (6, 9), (2, 3), (3, 2), (2, 2), (9, 9)]


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Compiled code is counted per function, and every layer has the same forward."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments_of(layer, steps, batch, schedule, device):
    """`(arguments, keywords)` of a call; everything that is differentiable requires a gradient."""
    x = padded(device=device, steps=steps, batch=batch, batch_first=layer.batch_first).requires_grad_()
    keywords = {}
    if schedule == "lengths+reset":
        lengths = torch.randint(0, steps + 1, (batch,), device=device)
        reset_mask = torch.rand(x.shape[:2], device=device) < 0.3
        keywords = {"lengths": lengths, "reset_mask": reset_mask, "return_state_sequence": True}
    return (x, states(layer, batch, device=device)), keywords


def assert_same(compiled, layer, arguments, keywords):
    """Results and gradients, by `layer` and by what was compiled of it."""
    found, gradients = outputs_and_gradients(compiled, *arguments, **keywords)
    expected, expected_gradients = outputs_and_gradients(layer, *arguments, **keywords)
    assert_close(found, expected)
    assert_close(gradients, expected_gradients, gradient=True)


# --- the operators ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", helpers.MASKS)
@every_backend
@two_cells
def test_operators_compile_without_a_graph_break(cell, backend, masks, device):
    one = problem(cell, "lengths+reset", masks=masks, device=device, padding=0.0)
    module = Layer(one)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    inputs = requiring_gradients(inputs_of(one))
    differentiable = [*inputs, *module.parameters()]
    expected = torch.autograd.grad(loss(module(*inputs)), differentiable)
    assert_close(torch.autograd.grad(loss(compiled(*inputs)), differentiable), expected, gradient=True)
    with torch.no_grad():
        assert_close(compiled(*inputs), module(*inputs))


# --- layers -----------------------------------------------------------------------------------------------------------


@every_schedule
@every_backend
@every_layer
def test_other_sizes_compile_nothing_again(name, backend, schedule, device):
    layer, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    with no_recompilation:
        for steps, batch in SIZES:
            assert_same(compiled, layer, *arguments_of(layer, steps, batch, schedule, device))


@every_schedule
@every_layer
def test_sizes_become_dynamic_by_themselves(name, schedule, device):
    layer, _ = pair(name, 5, 8, 2, device=device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for steps, batch in SIZES[:2]:  # once for these sizes alone, once for all
        assert_same(compiled, layer, *arguments_of(layer, steps, batch, schedule, device))
    with no_recompilation:
        for steps, batch in SIZES[2:]:
            assert_same(compiled, layer, *arguments_of(layer, steps, batch, schedule, device))


OPTIONS = [
    ("LSTM", {"bias": False, "batch_first": True}),
    ("LSTM", {"proj_size": 3, "recompute": True}),
    ("LSTM", {"heads": 2, "forget_bias": 1.0}),
    ("GRU", {"reset_after": False, "recompute": True}),
    ("RNN", {"nonlinearity": "sigmoid", "heads": 4}),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_every_option_compiles(name, options, training, device):
    torch.manual_seed(0)
    layer = getattr(rnnkern, name)(5, 8, 2, **options, zoneout=0.0 if training else 0.2, dtype=torch.float64)
    layer.to(device).train(training)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    arguments, keywords = arguments_of(layer, 6, 4, "lengths+reset", device)
    assert_same(compiled, layer, arguments, keywords)
    with torch.no_grad():
        assert_close(compiled(*arguments, **keywords), layer(*arguments, **keywords))


@every_layer
def test_unbatched_input_compiles(name, device):
    layer, _ = pair(name, 5, 8, device=device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = padded(device=device)[:, 0].clone().requires_grad_()
    assert_same(compiled, layer, (x, states(layer, None, device=device)), {"lengths": torch.tensor(4)})


@every_layer
def test_a_compiled_layer_draws_the_masks_of_the_eager_one(name, device):
    options = {"dropout": 0.5, "recurrent_dropout": 0.3, "weight_dropout": 0.4, "zoneout": 0.2}
    layer, _ = pair(name, 5, 8, 2, device=device)
    for option, value in options.items():
        setattr(layer, option, value)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    arguments, keywords = arguments_of(layer, 6, 4, "lengths+reset", device)

    def seeded(module):
        torch.manual_seed(5)
        return outputs_and_gradients(module, *arguments, **keywords)

    found, expected = seeded(compiled), seeded(layer)
    assert_close(found, expected)
    torch.manual_seed(6)
    assert not torch.equal(layer(*arguments, **keywords)[0], expected[0][0])


@every_backend
@every_layer
@pytest.mark.parametrize("is_sorted", [False, True])
def test_a_packed_sequence_trains_compiled(name, backend, is_sorted, device):
    layer, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    x = pack_padded_sequence(padded(device=device), torch.tensor([6, 4, 3, 1])) if is_sorted else packed(device=device)

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, data):
            output, hx = self.layer(PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices))
            return output.data, hx

    data = x.data.clone().requires_grad_()
    assert_same(torch.compile(Call(), backend=backend, fullgraph=True), Call(), (data,), {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_compiled_under_autocast(name, dtype, device):
    layer, _ = pair(name, 5, 8, 2, dtype=torch.float32, device=device)
    compiled = torch.compile(layer, backend="inductor", fullgraph=True)
    x = padded(torch.float32, device)

    def call(module):
        with torch.autocast(device, dtype):
            y, _ = module(x)
        return y, *torch.autograd.grad(y.float().square().sum(), list(layer.parameters()))

    found, expected = call(compiled), call(layer)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found[0].dtype == dtype


def test_a_compiled_layer_refuses_double_backward(device):
    """torch.compile's own limit, and no silent zero."""
    layer, _ = pair("LSTM", 5, 8, device=device)
    x = padded(device=device).requires_grad_()
    y, _ = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    (d_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        d_x.sum().backward()


# --- steps and cells --------------------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_train_compiled_and_take_every_batch(name, backend, device):
    cell = getattr(rnnkern, name)(5, 8, dtype=torch.float64, device=device)
    compiled = torch.compile(cell, backend=backend, fullgraph=True, dynamic=True)
    with no_recompilation:
        for batch in (4, 2, 7):
            x, h, c = (torch.randn(batch, s, dtype=torch.float64, device=device).requires_grad_() for s in (5, 8, 8))
            assert_same(compiled, cell, (x, (h, c) if name == "LSTMCell" else h), {})


@every_layer
def test_steps_compile_and_take_every_batch(name, device):
    layer, _ = pair(name, 5, 8, 2, device=device)
    compiled = torch.compile(layer.step, backend="inductor", fullgraph=True, dynamic=True)
    with no_recompilation, torch.no_grad():
        for batch in (4, 2, 7):
            x, hx = padded(device=device, steps=1, batch=batch)[0], states(layer, batch, device=device)
            assert_close(compiled(x, hx), layer.step(x, hx))


def test_a_copy_of_a_compiled_layer_compiles(device):
    layer, _ = pair("LSTM", 5, 8, device=device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    arguments = arguments_of(layer, 6, 4, "plain", device)
    assert_same(compiled, layer, *arguments)
    clone = copy.deepcopy(compiled)
    assert_same(clone, layer, *arguments)


# --- around transforms of torch.func ----------------------------------------------------------------------------------

TRANSFORMS = {
    "grad": grad,
    "vmap": lambda function: vmap(lambda row: function(row.unsqueeze(0))),
    "vmap(grad)": lambda function: vmap(grad(lambda row: function(row.unsqueeze(0)))),
    "jvp": lambda function: lambda x: jvp(function, (x,), (x.cos(),)),
    "jacfwd": jacfwd,
    "jacrev": jacrev,
    "hessian": hessian,
}


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiled_around_a_transform_it_raises_or_is_right(transform, fullgraph, device):
    layer, _ = pair("LSTM", 5, 3, device=device)
    transformed = TRANSFORMS[transform](lambda x: layer(x)[0].square().sum())
    x = padded(device=device, steps=3, batch=2)
    try:
        found = torch.compile(transformed, backend="aot_eager", fullgraph=fullgraph)(x)
    except TorchDynamoException as refusal:
        assert "rnnkern" in str(refusal)
    else:
        assert_close(tensors_of(found), tensors_of(transformed(x)), gradient=True)
