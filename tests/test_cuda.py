"""What only a GPU has: graphs, streams, several devices, the caching allocator, and no hidden synchronisation."""

import copy
import gc

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkern
from comparison import LAYERS, assert_close, outputs_and_gradients, pair, states, tensors_of
from layer_inputs import every_layer, padded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

OPTIONS = {"num_layers": 2, "bidirectional": True}
every_schedule = pytest.mark.parametrize("schedule", ["plain", "lengths+reset"])
# How the kernels are launched differs: the hidden size and the dtype that each is tested with.
STRATEGIES = {
    "stepwise": (8, torch.float64),
    "stationary:block": (64, torch.float32),
    "stationary:cluster": (256, torch.float32),
    "stationary:grid": (256, torch.float32),
}


@pytest.fixture(params=STRATEGIES)
def forced(request):
    """Forces each strategy in turn: `(hidden size, dtype)`."""
    if request.param not in rnnkern.strategies():
        pytest.skip(f"{request.param} is not in this build")
    with rnnkern.strategy(request.param):
        yield STRATEGIES[request.param]


def schedule_of(schedule, steps=6, batch=4):
    if schedule == "plain":
        return {}
    lengths = torch.randint(0, steps + 1, (batch,), device="cuda")
    return {"lengths": lengths, "reset_mask": torch.rand(steps, batch, device="cuda") < 0.3}


def warmed_up(step):
    """Calls it on a stream of its own, as a capture asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)


# --- graphs -----------------------------------------------------------------------------------------------------------


@every_schedule
@every_layer
def test_a_captured_call_replays_with_other_values(name, schedule, forced):
    size, dtype = forced
    layer, _ = pair(name, 5, size, **OPTIONS, dtype=dtype, device="cuda")
    x, keywords = padded(dtype, "cuda"), schedule_of(schedule)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        warmed_up(lambda: layer(x, **keywords))
        with torch.cuda.graph(graph):
            results = layer(x, **keywords)
        for _ in range(2):
            x.copy_(torch.randn_like(x))
            for key, other in schedule_of(schedule).items():
                keywords[key].copy_(other)
            graph.replay()
            assert_close(results, layer(x, **keywords), dtype)


@every_schedule
@every_layer
def test_a_captured_training_step_replays(name, schedule, forced):
    size, dtype = forced
    layer, _ = pair(name, 5, size, **OPTIONS, dtype=dtype, device="cuda")
    alone = copy.deepcopy(layer)
    x, keywords = padded(dtype, "cuda"), schedule_of(schedule)
    optimizer, other_optimizer = (torch.optim.SGD(one.parameters(), 0.1) for one in (layer, alone))

    def step(layer, optimizer):
        optimizer.zero_grad(set_to_none=True)
        layer(x, **keywords)[0].square().mean().backward()
        optimizer.step()

    warmed_up(lambda: step(layer, optimizer))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(layer, optimizer)
    for _ in range(3):
        step(alone, other_optimizer)
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        step(alone, other_optimizer)
    assert_close(list(layer.parameters()), list(alone.parameters()), dtype, gradient=True)


def test_layers_on_parallel_branches_of_a_graph(forced):
    """Each of a grid's sweeps needs all its blocks at once, beside another one's."""
    size, dtype = forced
    x, streams = padded(dtype, "cuda"), [torch.cuda.Stream() for _ in range(2)]
    layers = [pair("LSTM", 5, size, dtype=dtype, device="cuda")[0] for _ in streams]
    graph = torch.cuda.CUDAGraph()

    def run():
        start, results = torch.cuda.current_stream(), []
        for layer, stream in zip(layers, streams, strict=True):
            stream.wait_stream(start)
            with torch.cuda.stream(stream):
                results.append(layer(x)[0])
        for stream in streams:
            start.wait_stream(stream)
        return results

    with torch.no_grad():
        warmed_up(run)
        with torch.cuda.graph(graph):
            results = run()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert_close(results, [layer(x)[0] for layer in layers], dtype)


@pytest.mark.parametrize("training", [True, False])
@every_layer
def test_graphed_callables_of_layers(name, training, forced):
    size, dtype = forced
    layer, _ = pair(name, 5, size, **OPTIONS, dtype=dtype, device="cuda")
    layer.train(training)
    alone = copy.deepcopy(layer)
    x = padded(dtype, "cuda").requires_grad_()
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    for _ in range(2):
        other = torch.randn_like(x).requires_grad_()
        found, expected = outputs_and_gradients(graphed, other), outputs_and_gradients(alone, other)
        assert_close(found[0], expected[0], dtype)
        assert_close(found[1], expected[1], dtype, gradient=True)


@every_layer
def test_replays_draw_masks_of_their_own(name):
    layer = getattr(rnnkern, name)(5, 8, 2, dropout=0.5, recurrent_dropout=0.5, zoneout=0.3, device="cuda")
    x = padded(torch.float32, "cuda")
    warmed_up(lambda: layer(x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = layer(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)


def test_lengths_on_the_cpu_are_refused_in_a_capture():
    layer, _ = pair("LSTM", 5, 8, device="cuda")
    x, lengths = padded(device="cuda"), torch.tensor([3, 0, 6, 1])
    warmed_up(lambda: layer(x, lengths=lengths))
    with pytest.raises(RuntimeError, match="lengths on the CPU cannot be captured in a CUDA graph: give them on cuda"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x, lengths=lengths)


@every_layer
def test_compiled_with_graphs(name):
    torch._dynamo.reset()
    layer, _ = pair(name, 5, 8, **OPTIONS, device="cuda")
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):  # warmed up, captured, replayed
        torch.compiler.cudagraph_mark_step_begin()
        x = padded(device="cuda").requires_grad_()
        found, expected = outputs_and_gradients(compiled, x), outputs_and_gradients(layer, x)
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1], gradient=True)


# --- streams and devices ----------------------------------------------------------------------------------------------


@every_schedule
@every_layer
def test_work_goes_to_the_current_stream(name, schedule, forced):
    size, dtype = forced
    layer, _ = pair(name, 5, size, **OPTIONS, dtype=dtype, device="cuda")
    x, keywords = padded(dtype, "cuda"), schedule_of(schedule)
    with rnnkern.strategy("stepwise"):  # which the tests of every layer compare with the reference
        expected = outputs_and_gradients(layer, x.clone().requires_grad_(), **keywords)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)  # what runs on another stream would see the zeros
        late.copy_(x)
        found = outputs_and_gradients(layer, late.requires_grad_(), **keywords)
    stream.synchronize()
    assert_close(found[0], expected[0], dtype)
    assert_close(found[1], expected[1], dtype, gradient=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_layer
def test_tensors_on_a_device_that_is_not_the_current_one(name):
    layer, _ = pair(name, 5, 8, **OPTIONS, device="cuda:0")
    other = copy.deepcopy(layer).to("cuda:1")
    x = padded(device="cuda:0")
    with torch.cuda.device(0):
        expected = outputs_and_gradients(layer, x.clone().requires_grad_(), states(layer, 4, device="cuda:0"))
        found = outputs_and_gradients(other, x.to("cuda:1").requires_grad_(), states(layer, 4, device="cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda:1") for tensor in tensors_of(found))
    assert_close([t.cpu() for t in tensors_of(found)], [t.cpu() for t in tensors_of(expected)], gradient=True)


# --- memory and waiting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@every_layer
def test_memory_goes_back_to_the_allocator(name, recompute):
    layer = getattr(rnnkern, name)(64, 64, **OPTIONS, recompute=recompute, device="cuda")
    x = torch.randn(50, 16, 64, device="cuda")

    def step():
        layer(x)[0].sum().backward()
        layer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    gc.collect()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() == reserved


@pytest.fixture
def waiting_raises():
    """Whatever makes the processor wait for the GPU raises."""

    def start():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    yield start
    torch.cuda.set_sync_debug_mode("default")


RANDOM = {"dropout": 0.5, "recurrent_dropout": 0.5, "weight_dropout": 0.5, "zoneout": 0.5}


@pytest.mark.parametrize("options", [{}, {"recompute": True}, RANDOM], ids=["plain", "recompute", "random"])
@pytest.mark.parametrize("kind", ["plain", "lengths", "lengths on the CPU", "reset", "packed", "packed+reset"])
@every_layer
def test_nothing_waits_for_the_gpu(name, kind, options, waiting_raises):
    layer = getattr(rnnkern, name)(5, 8, 2, bidirectional=True, **options, device="cuda")
    x, hx = padded(torch.float32, "cuda").requires_grad_(), states(layer, 4, torch.float32, "cuda")
    keywords = {}
    if kind.startswith("packed"):
        lengths = torch.tensor([3, 6, 1, 4])
        mask = pack_padded_sequence(torch.rand(6, 4, device="cuda") < 0.3, lengths, enforce_sorted=False)
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        keywords = {"reset_mask": mask} if kind.endswith("reset") else {}
    elif kind.startswith("lengths"):
        lengths = torch.tensor([3, 0, 6, 1])
        keywords = {"lengths": lengths if kind.endswith("CPU") else lengths.cuda()}
    elif kind == "reset":
        keywords = {"reset_mask": torch.rand(6, 4, device="cuda") < 0.3}

    def train():
        y, _ = layer(x, hx, **keywords)
        y = y.data if isinstance(y, PackedSequence) else y
        y.sum().backward(retain_graph=True)
        with torch.no_grad():
            layer(x, hx, **keywords)

    train()  # libraries are loaded, buffers made
    waiting_raises()
    train()


@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"])
def test_no_step_waits_for_the_gpu(name, waiting_raises):
    module = getattr(rnnkern, name)(5, 8, device="cuda")
    step = module if name.endswith("Cell") else module.step
    x = torch.randn(4, 5, device="cuda")

    def run():
        sum(t.sum() for t in tensors_of(step(x))).backward()
        with torch.no_grad():
            step(x, step(x)[1] if name in LAYERS else step(x))

    run()
    waiting_raises()
    run()
