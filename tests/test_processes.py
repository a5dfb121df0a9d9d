"""Layers in the workers of a DataLoader, and called by many threads of one process."""

import concurrent.futures
import os
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import rnnkern
from layer_inputs import every_layer

TIMEOUT = 120  # seconds for what should take a few: a lock that a fork left held would wait for ever
# Large enough for a parallel region in this process, whose threads a forked worker does not have.
STEPS, BATCH, SIZE = 20, 16, 128


class Features(Dataset):
    """Items computed by a layer in the worker, with their gradient; spawned workers get the layer pickled."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.randn(STEPS, BATCH, SIZE, generator=torch.Generator().manual_seed(index)).requires_grad_()
        y, _ = self.layer(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0], self.layer.step(x.detach()[0])[0].detach()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_compute_the_same(method, threads):
    threads(2)
    features = Features(rnnkern.LSTM(SIZE, SIZE))
    expected = list(DataLoader(features))  # here, so that this process has its threads before it forks
    loader = DataLoader(features, num_workers=2, multiprocessing_context=method, timeout=TIMEOUT)
    for found, wanted in zip(loader, expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


def resident():
    """Bytes of memory that the process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@every_layer
def test_threads_that_come_and_go_leave_no_memory_behind(name, threads):
    threads(1)
    layer, x = getattr(rnnkern, name)(SIZE, SIZE), torch.randn(STEPS, BATCH, SIZE)
    expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))

    def call(_):
        found = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
        layer.step(x[0])
        return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def rounds(count):
        for _ in range(count):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                assert all(pool.map(call, range(8)))

    rounds(5)
    before = resident()
    rounds(20)
    # A call's results take half a megabyte and more: one that stayed for each of these 160 would be far above this.
    assert resident() - before < 16 * 2**20


def longest_pause_beside(work):
    """`(seconds without Python, seconds of work)` while another thread does the work."""
    done, pauses, took = threading.Event(), [], []

    def run():
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
        done.set()

    thread = threading.Thread(target=run)
    last = time.perf_counter()
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        pauses.append(now - last)
        last = now
    thread.join()
    return max(pauses), took[0]


def test_a_call_lets_other_threads_run_python(threads):
    threads(1)
    layer, x = rnnkern.LSTM(256, 512), torch.randn(50, 64, 256)
    with torch.no_grad():
        start = time.perf_counter()
        layer(x)
        once = time.perf_counter() - start
        x = x.repeat(max(1, round(0.5 / once)), 1, 1)  # half a second or more in one call
        pause, took = longest_pause_beside(lambda: layer(x))
    assert pause < 0.5 * took

    y, _ = layer(x)
    pause, took = longest_pause_beside(lambda: y.sum().backward())
    assert pause < 0.5 * took
