"""What every test gets: a device to run on, a seed of its own, and its share of the processor."""

import os
import sys
import zlib

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", help="run the tests that take a device on this one alone: cpu or cuda")


def pytest_configure(config):
    # cuDNN's setting for recurrent layers, which these follow: the table of tolerances has float32 and TF32 apart.
    torch.backends.cudnn.allow_tf32 = False
    # Workers of pytest-xdist share the cores; a test that needs several threads asks for them.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        only = metafunc.config.getoption("--device")
        metafunc.parametrize("device", [only] if only else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


@pytest.fixture(autouse=True)
def seed(request):
    """The same random numbers for a test whatever runs before it."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    yield
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        try:
            torch.cuda.synchronize()  # a kernel's fault shows in the test that launched it
        except RuntimeError as fault:
            print(f"{request.node.nodeid}: {fault}", file=sys.__stderr__, flush=True)
            os._exit(70)  # nothing else would run in this process


@pytest.fixture
def threads():
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def direct(monkeypatch):
    """From its call on, it is an error that a layer without gradients, or a cell, takes the long way."""
    from rnnkern import autograd

    def refuse(*_, **__):
        raise AssertionError("the long way was taken")

    def refusing():
        monkeypatch.setattr(autograd, "layer", refuse)
        monkeypatch.setattr(autograd, "_cell_backward", refuse)

    return refusing
