"""The same inputs give the same bits in every process, on the CPU with every number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnkern

PROGRAM = """
import hashlib, sys
import torch, rnnkern

torch.set_num_threads(int(sys.argv[1]))
torch.set_default_device(sys.argv[2])
torch.use_deterministic_algorithms(True)
digest = hashlib.sha256()

def add(tensors):
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

for name in ("LSTM", "GRU", "RNN"):
    for dtype in (torch.float32, torch.bfloat16):
        for size, batch in ((33, 3), (256, 1)):
            torch.manual_seed(0)
            layer = getattr(rnnkern, name)(17, size, 2, bidirectional=True, dropout=0.5, zoneout=0.1, dtype=dtype)
            x = torch.randn(9, batch, 17).to(dtype).requires_grad_()
            y, _ = layer(x, lengths=torch.arange(9, 9 - batch, -1))
            add([y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])])
print(digest.hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_fresh_processes_give_the_same_bits_forward_and_backward(threads, device):
    command = [sys.executable, "-c", PROGRAM, threads, device]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # as torch asks on CUDA
    where = Path(rnnkern.__file__).parents[1]  # so that the programs find this build
    processes = [
        subprocess.Popen(command, cwd=where, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert len(first.strip()) == 64
    assert first == second


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("size", [40, 256, 520])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_bits_are_the_same_for_every_number_of_threads(name, batch, size, bidirectional, threads):
    layer = getattr(rnnkern, name)(5, size, bidirectional=bidirectional)
    x = torch.randn(12, batch, 5, requires_grad=True)
    h = torch.randn(1 + bidirectional, batch, size, requires_grad=True)
    c = torch.randn_like(h, requires_grad=True)
    hx = (h, c) if name == "LSTM" else h
    d_y = torch.randn(12, batch, size * (1 + bidirectional))
    inputs = [x, h, *([c] if name == "LSTM" else []), *layer.parameters()]
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        y, _ = layer(x, hx)
        with torch.no_grad():  # threads share the work in another way
            assert torch.equal(layer(x, hx)[0], y)
        results.append([y, *torch.autograd.grad(y, inputs, d_y)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_row_gives_the_same_bits_of_the_recurrence_in_every_batch(name):
    layer = getattr(rnnkern, name)(2, 40)
    x = torch.zeros(12, 16, 2)
    h = torch.randn(1, 16, 40)

    def run(rows):
        hx = (h[:, rows], h[:, rows] / 2) if name == "LSTM" else h[:, rows]
        return layer(x[:, rows], hx)[0]

    whole = run(slice(None))
    assert torch.equal(run(slice(0, 1)), whole[:, :1])
    assert torch.equal(run(slice(5, 12)), whole[:, 5:12])


@pytest.mark.parametrize("name, options", [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 24}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("RNN", {"zoneout": 0.1}),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch, steps", [(1, 1), (1, 7), (20, 1), (40, 1), (40, 7)])
def test_no_state_is_a_state_of_zeros(name, options, dtype, batch, steps, device):
    layer = getattr(rnnkern, name)(16, 40, bidirectional=True, device=device, dtype=dtype, **options).eval()
    x = torch.randn(steps, batch, 16, device=device).to(dtype)
    h = torch.zeros(2, batch, options.get("proj_size", 40), device=device, dtype=dtype)
    zeros = (h, h.new_zeros(2, batch, 40)) if name == "LSTM" else h
    with torch.no_grad():
        assert torch.equal(layer(x)[0], layer(x, zeros)[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch", [1, 40])
def test_a_reset_of_all_rows_begins_a_sequence_of_its_own(name, batch):
    layer = getattr(rnnkern, name)(16, 40)
    x = torch.randn(7, batch, 16)
    reset_mask = torch.zeros(7, batch, dtype=torch.bool)
    reset_mask[3] = True
    y, _ = layer(x, reset_mask=reset_mask)
    assert torch.equal(y, torch.cat([layer(x[:3])[0], layer(x[3:])[0]]))
