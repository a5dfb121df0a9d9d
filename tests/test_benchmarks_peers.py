"""Every peer computes what the double reference does, from the same weights, or says what it does not do."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import adapters
from adapters import Unsupported, rnnkern_compiled, torch_compile
from check import compare, expected
from measure import Watch, check_sides
from suites import CELLS, Data, Problem

TINY = Problem("lstm", hidden=8, batch=2, steps=5)
MODES = ("inference", "training", "step")


def peer(name):
    """The adapter, where its library is installed."""
    adapter = adapters.adapters()[name]
    try:
        adapter.load()
    except ImportError as error:
        pytest.skip(f"{name} is not installed ({error}): {adapter.INSTALL}")
    return adapter


def done(adapter, problem):
    """Checks the peer as the runner does; whether it does the problem at all."""
    row = check_sides(problem, {adapter.NAME: adapter}, Watch())[adapter.NAME]
    assert row.status in ("ok", "unsupported"), row.message
    assert row.status == "ok" or row.message.startswith(f"{adapter.NAME}: ") or adapter.NAME == "torch.nn"
    return row.status == "ok"


def problems(**options):
    for cell in CELLS:
        for mode in MODES:
            yield dataclasses.replace(TINY, cell=cell, mode=mode, steps=1 if mode == "step" else 5, **options)


def does(adapter, **options):
    return {(p.cell, p.mode) for p in problems(**options) if done(adapter, p)}


EVERYTHING = {(cell, mode) for cell in CELLS for mode in MODES}


def test_every_adapter_says_how_it_is_called_and_installed():
    found = adapters.adapters()
    assert list(found)[:2] == ["rnnkern", "torch.nn"]
    assert {"onnxruntime", "torch.compile", "torch int8", "torch CUDA graph", "torch reset loop"} <= set(found)
    assert {"haste_pytorch", "flashrnn", "torchrl", "rnnkern int8", "rnnkern CUDA graph"} <= set(found)
    for name, adapter in found.items():
        assert adapter.NAME == name and adapter.INSTALL and callable(adapter.load) and callable(adapter.build)


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"bidirectional": True}, {"layers": 2, "bidirectional": True}])
def test_onnxruntime(options):
    assert does(peer("onnxruntime"), **options) == {(cell, mode) for cell, mode in EVERYTHING if mode != "training"}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_onnxruntime_takes_the_lengths_of_packed_sequences(bidirectional):
    for cell in CELLS:
        assert done(peer("onnxruntime"), dataclasses.replace(TINY, cell=cell, packed=True, bidirectional=bidirectional))


def test_onnxruntime_says_what_it_does_not_do():
    with pytest.raises(Unsupported, match="onnxruntime: inference alone"):
        peer("onnxruntime").build(Data(dataclasses.replace(TINY, mode="training")))


@pytest.mark.parametrize("options", [{}, {"layers": 2, "bidirectional": True}])
def test_torch_int8(options):
    gated = {(cell, mode) for cell, mode in EVERYTHING if cell != "rnn" and mode != "training"}
    assert does(peer("torch int8"), **options) == gated


def test_torch_int8_is_near_but_not_exact():
    """Its tolerance would be pointless otherwise; and an error of a tenth is refused."""
    adapter, data = peer("torch int8"), Data(TINY)
    with torch.inference_mode():
        call, want = adapter.build(data), expected(data)
        got = call.results(call(0))
    assert compare(TINY, got, want, is_peer=True)[1]
    assert not compare(TINY, got, want, is_peer=True, tolerance=adapter.TOLERANCE)[1]
    assert compare(TINY, [1.1 * g for g in got], want, is_peer=True, tolerance=adapter.TOLERANCE)[1]


def test_rnnkern_int8():
    assert ("lstm", "inference") in does(peer("rnnkern int8"))


def test_a_loop_with_resets():
    adapter = peer("torch reset loop")
    assert does(adapter, reset=0.3) == EVERYTHING
    assert does(adapter) == set()  # nothing to reset


def test_torchrl():
    gated = {(cell, mode) for cell, mode in EVERYTHING if cell != "rnn" and mode != "step"}
    assert does(peer("torchrl"), reset=0.3) == gated


def test_a_compiled_loop(monkeypatch):
    """Traced and unrolled, but run eagerly: the compiler takes a minute."""
    monkeypatch.setattr(torch_compile, "BACKEND", "eager")
    monkeypatch.setattr(torch_compile, "UNROLLED", 3)  # of 5 steps: none but 1 divides them
    assert does(peer("torch.compile")) == EVERYTHING
    assert done(peer("torch.compile"), dataclasses.replace(TINY, steps=6))


def test_rnnkern_compiled(monkeypatch):
    monkeypatch.setattr(rnnkern_compiled, "BACKEND", "eager")
    assert does(peer("rnnkern compiled")) == {(cell, mode) for cell, mode in EVERYTHING if mode != "step"}


@pytest.mark.parametrize("name", ["flashrnn", "haste_pytorch"])
def test_libraries_for_a_gpu_by_their_own_fallback(name, monkeypatch):
    """Both have a plain torch version that runs anywhere: gate order, layout and gradients are those of the kernels."""
    adapter = peer(name)
    module = importlib.import_module(adapter.__name__)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    if name == "flashrnn":
        monkeypatch.setattr(module, "BACKENDS", dict.fromkeys(module.BACKENDS, "vanilla"))
    assert {("lstm", "inference"), ("lstm", "training"), ("gru", "training")} <= does(adapter)


@pytest.mark.parametrize("name", ["torch CUDA graph", "rnnkern CUDA graph", "flashrnn", "haste_pytorch"])
def test_a_gpu_library_refuses_the_cpu(name):
    with pytest.raises(Unsupported, match=f"{name}: on CUDA alone"):
        adapters.adapters()[name].build(Data(TINY))


@pytest.mark.parametrize("name", ["torch CUDA graph", "rnnkern CUDA graph"])
def test_cuda_graphs(name):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    assert does(peer(name), device="cuda") == EVERYTHING


def test_a_final_state_may_be_missing_but_no_output():
    want = expected(Data(TINY))
    assert compare(TINY, [want[0], None, None], want, is_peer=True) == (0.0, "")
    assert compare(TINY, [None, *want[1:]], want, is_peer=True)[1] == "y is missing"
