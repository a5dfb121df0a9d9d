"""Training over two processes, data parallel and fully sharded: what one process does with the whole batch."""

import datetime
import os
import time

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import rnnkern
from comparison import assert_close

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="torch was built without its distributed package"
)

PROCESSES = 2
TIMEOUT = 120  # seconds for what should take a few
STEPS, BATCH, SIZE = 6, 4, 6


def in_processes(function, folder, *arguments):
    """Runs `function(rank, *arguments)` in each process of a gloo group; an exception in any of them is raised here."""
    file = folder / "rendezvous"
    context = torch.multiprocessing.spawn(_process, (file, function, arguments), nprocs=PROCESSES, join=False)
    deadline = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"not done after {TIMEOUT} seconds"
    finally:
        for process in context.processes:
            process.kill()


def _process(rank, file, function, arguments):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    distributed.init_process_group("gloo", f"file://{file}", timeout, PROCESSES, rank)
    function(rank, *arguments)
    distributed.destroy_process_group()
    # A device mesh keeps gloo's threads alive, and one that lets go of a tensor while the interpreter ends aborts.
    os._exit(0)


class Model(nn.Module):
    """The layers of either package, in double, with equal weights every time."""

    def __init__(self, package=rnnkern):
        super().__init__()
        torch.manual_seed(0)
        self.first = package.LSTM(SIZE, SIZE, 2, bidirectional=True, proj_size=3, batch_first=True)
        self.second = package.GRU(SIZE, SIZE, batch_first=True)
        self.third = package.RNN(SIZE, SIZE, batch_first=True)
        self.head = nn.Linear(SIZE, 1)
        self.double()

    def forward(self, x):
        for layer in (self.first, self.second, self.third):
            x, _ = layer(x)
        return self.head(x)


def whole_batch(step=0, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, STEPS, SIZE, dtype=torch.float64, generator=generator).to(device)


def share(rank, x):
    """The samples of one process."""
    return x.tensor_split(PROCESSES)[rank]


def backward(model, x):
    model(x).square().mean().backward()


def train(model, optimiser, steps, part=lambda x: x):
    for step in steps:
        optimiser.zero_grad()
        backward(model, part(whole_batch(step)))
        optimiser.step()


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def assert_gradients_are_those_of_one_process(model, device="cpu", times=1):
    one = Model().to(device)
    backward(one, whole_batch(device=device))
    found = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
    assert_close(found, [times * p.grad for p in one.parameters()], gradient=True)


# --- DistributedDataParallel ------------------------------------------------------------------------------------------


def data_parallel(rank, device):
    options = {"gradient_as_bucket_view": True, "static_graph": True}
    for package, keywords in ((rnnkern, {}), (rnnkern, options), (nn, {})):
        model = DistributedDataParallel(Model(package).to(device), **keywords)
        backward(model, share(rank, whole_batch(device=device)))
        assert_gradients_are_those_of_one_process(model, device)

    model = DistributedDataParallel(Model().to(device))
    x = share(rank, whole_batch(device=device))
    with model.no_sync():
        backward(model, x)
    backward(model, x)  # sends the sum of the two
    assert_gradients_are_those_of_one_process(model, device, times=2)


def test_data_parallel_gradients_are_those_of_the_whole_batch(tmp_path, device):
    in_processes(data_parallel, tmp_path, device)


# --- FSDP2 ------------------------------------------------------------------------------------------------------------


def sharded(package=rnnkern, **options):
    model = Model(package)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    for module in (model.first, model.second, model.third, model):
        fully_shard(module, mesh=mesh, **options)
    return model


def save(model, optimiser, folder):
    parameters, state = get_state_dict(model, optimiser)
    checkpoint.save({"model": parameters, "optimiser": state}, checkpoint_id=folder)


def load(model, optimiser, folder):
    parameters, state = get_state_dict(model, optimiser)
    checkpoint.load({"model": parameters, "optimiser": state}, checkpoint_id=folder)  # in place
    set_state_dict(model, optimiser, model_state_dict=parameters, optim_state_dict=state)


def fully_sharded(rank, before, after):
    for package, options in ((rnnkern, {}), (rnnkern, {"reshard_after_forward": False}), (nn, {})):
        model = sharded(package, **options)
        assert isinstance(model.first.weight_hh_l0, DTensor)
        assert model.first.weight_hh_l0.to_local().shape[0] == 4 * SIZE // PROCESSES
        backward(model, share(rank, whole_batch()))
        assert_gradients_are_those_of_one_process(model)

    model = sharded(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    x = share(rank, whole_batch())
    assert torch.equal(model(x), Model().bfloat16()(x.bfloat16()))

    with torch.device("meta"):
        layer = rnnkern.LSTM(SIZE, SIZE, forget_bias=1.0)
    fully_shard(layer, mesh=distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,)))
    layer.to_empty(device="cpu").reset_parameters()
    bias = layer.bias_ih_l0.full_tensor()
    assert (bias[SIZE : 2 * SIZE] == 1).all() and bias[:SIZE].abs().max() < 1

    model = sharded()
    optimiser = adam(model)
    load(model, optimiser, before)
    train(model, optimiser, range(2, 4), lambda x: share(rank, x))
    save(model, optimiser, after)


def test_fully_sharded_training_goes_on_from_one_process_and_back_in_one_process(tmp_path):
    one = Model()
    optimiser = adam(one)
    train(one, optimiser, range(2))
    save(one, optimiser, tmp_path / "before")
    in_processes(fully_sharded, tmp_path, tmp_path / "before", tmp_path / "after")
    train(one, optimiser, range(2, 4))
    loaded = [Model(rnnkern), Model(nn)]  # a checkpoint names parameters alone: torch.nn's layers take it too
    optimisers = [adam(model) for model in loaded]
    for model, its_optimiser in zip(loaded, optimisers, strict=True):
        load(model, its_optimiser, tmp_path / "after")
        assert_close(list(model.parameters()), list(one.parameters()), gradient=True)
    train(one, optimiser, [4])
    for model, its_optimiser in zip(loaded, optimisers, strict=True):
        train(model, its_optimiser, [4])
        assert_close(list(model.parameters()), list(one.parameters()), gradient=True)
