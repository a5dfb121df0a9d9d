"""What the library says about itself: build, strategies, and how a call would run."""

import copy
import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkern
from rnnkern import _C, ops

module = importlib.import_module("rnnkern.plan")  # whose name a function of the package has
H100 = {
    "capability": 90, "multiprocessors": 132, "shared_bytes": 232448, "registers": 65536, "max_cluster": 16,
    "clock_ghz": 1.755, "bandwidth_gbs": 3350, "l2_bytes": 50 << 20,
}  # fmt: skip
A100 = H100 | {"capability": 80, "multiprocessors": 108, "shared_bytes": 166912, "max_cluster": 0, "clock_ghz": 1.41}
T4 = H100 | {"capability": 75, "multiprocessors": 40, "shared_bytes": 65536, "max_cluster": 0, "clock_ghz": 1.59}
X = torch.zeros(6, 4, 5)


def test_the_build_names_what_it_was_made_of():
    info = rnnkern.build_info()
    assert set(info) == {"version", "torch", "cuda", "cuda_archs", "cpu_isas", "cpu_isa"}
    assert info["version"] == rnnkern.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu_isa"] in info["cpu_isas"] and "portable" in info["cpu_isas"]
    assert bool(info["cuda_archs"]) == (info["cuda"] is not None)


def test_strategies_are_those_compiled_in():
    strategies = rnnkern.strategies()
    assert strategies[0] == "simd"
    on_gpu = rnnkern.build_info()["cuda"] is not None
    for name in ("stepwise", "stationary:block", "stationary:grid"):
        assert (name in strategies) == on_gpu


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_plan_counts_every_layer_and_what_is_kept(name):
    layer = getattr(rnnkern, name)(5, 8, 3, bidirectional=True)
    plan = rnnkern.plan(layer, X)
    assert plan["backend"] == "cpu" and plan["strategy"] == "simd"
    assert len(plan["layers"]) == 3
    assert plan["bytes"] == max(one["bytes"] for one in plan["layers"]) > 0
    assert plan["floor_us"] == sum(one["floor_us"] for one in plan["layers"]) > 0
    assert plan["saved_bytes"] == 3 * 2 * 6 * 4 * 8 * ops.SAVED[layer._cell] * 4
    assert set(plan["rejected"]) == set(rnnkern.strategies()) - {"simd"}
    with torch.no_grad():
        assert rnnkern.plan(layer, X)["saved_bytes"] == 0
    assert rnnkern.plan(layer.double(), X.double())["saved_bytes"] == 2 * plan["saved_bytes"]
    recomputing = getattr(rnnkern, name)(5, 8, 3, bidirectional=True, recompute=True)
    assert rnnkern.plan(recomputing, X)["saved_bytes"] == 0


def test_a_plan_takes_every_kind_of_input():
    layer = rnnkern.GRU(5, 8)
    expected = rnnkern.plan(layer, X)
    first = rnnkern.GRU(5, 8, batch_first=True)
    assert rnnkern.plan(first, X.transpose(0, 1)) == expected
    assert rnnkern.plan(first, X[:, 0]) == rnnkern.plan(layer, X[:, 0]) == rnnkern.plan(layer, X[:, :1])
    packed = rnnkern.plan(layer, pack_padded_sequence(X, [6, 4, 3, 1]))
    assert packed["saved_bytes"] == expected["saved_bytes"] * 14 // 24
    with torch.autocast("cpu", torch.bfloat16):
        assert rnnkern.plan(layer, X)["saved_bytes"] == expected["saved_bytes"] // 2


@pytest.mark.parametrize(
    ("layer", "x", "kind", "message"),
    [
        (rnnkern.LSTM(5, 8), X[0, 0], ValueError, "input: expected 2 or 3 dimensions, got 1"),
        (rnnkern.LSTM(5, 8), X[None], ValueError, "input: expected 2 or 3 dimensions, got 4"),
        (rnnkern.GRUCell(5, 8), X, ValueError, "input: expected 1 or 2 dimensions, got 3"),
        (rnnkern.GRU(5, 8), X.double(), ValueError, "does not match weight dtype"),
        (rnnkern.quantize_dynamic(rnnkern.GRU(5, 8)), X.double(), TypeError, "computes in float32"),
    ],
)
def test_there_is_no_plan_of_what_a_call_refuses(layer, x, kind, message):
    with pytest.raises(kind, match=message):
        rnnkern.plan(layer, x)
    with torch.no_grad(), pytest.raises(kind):
        layer(x)


def test_the_planned_memory_grows_with_what_is_kept_alone():
    layer, recomputing = rnnkern.LSTM(64, 64), rnnkern.LSTM(64, 64, recompute=True)
    x, longer = torch.zeros(1000, 16, 64), torch.zeros(10000, 16, 64)
    gates = 4 * 64 * 10000 * 16 * 4
    with torch.no_grad():
        assert rnnkern.plan(layer, longer)["bytes"] < 1.1 * rnnkern.plan(layer, x)["bytes"]
    assert rnnkern.plan(layer, longer)["bytes"] < 1.1 * rnnkern.plan(layer, x)["bytes"] < 0.1 * gates
    assert gates < rnnkern.plan(recomputing, longer)["bytes"] < 1.1 * gates


def test_a_plan_says_what_runs_the_reference_and_what_a_cell_is():
    (note,) = rnnkern.plan(rnnkern.LSTM(5, 8), X)["notes"]
    assert "double backward" in note and "jvp" in note and "reference" in note
    _, note = rnnkern.plan(rnnkern.LSTMCell(5, 8), X[0])["notes"]
    assert "cell" in note
    assert rnnkern.plan(rnnkern.RNNCell(5, 8), X[0, 0])["strategy"] == "simd"


def test_a_plan_refuses_another_input_size():
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 7, got 5"):
        rnnkern.plan(rnnkern.LSTM(7, 8), X)


def test_explain_prints_the_plan():
    layer = rnnkern.LSTM(5, 8, 2)
    plan, text = rnnkern.plan(layer, X), rnnkern.explain(layer, X)
    assert text.startswith("LSTM(5, 8, num_layers=2) on cpu\n")
    for part in (plan["strategy"], f"{plan['bytes']:,} bytes", f"{plan['saved_bytes']:,} bytes", *plan["notes"]):
        assert part in text
    for name, reason in plan["rejected"].items():
        assert f"not {name}: {reason}" in text


def forced_now():
    name = _C.force_strategy("")
    _C.force_strategy(name)
    return name


def test_a_forced_strategy_holds_on_every_thread():
    with rnnkern.strategy("simd"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(forced_now).result() == "simd"


def test_a_forced_strategy_holds_inside_the_block_alone():
    layer = rnnkern.GRU(5, 8)
    expected = layer(X)[0]
    with rnnkern.strategy("simd"):
        assert rnnkern.plan(layer, X)["strategy"] == forced_now() == "simd"
        assert torch.equal(layer(X)[0], expected)
        with rnnkern.strategy("simd"):
            pass
        assert forced_now() == "simd"
        layer(X)[0].sum().backward()
    assert forced_now() == ""
    with pytest.raises(KeyError), rnnkern.strategy("simd"):
        raise KeyError
    assert forced_now() == ""
    with pytest.raises(ValueError, match="strategy: expected one of simd.*, got ''"), rnnkern.strategy(""):
        pass


def test_a_plan_asks_the_weights_alone():
    layer = rnnkern.GRU(5, 8)
    layer.adapter = torch.nn.Linear(2, 2, dtype=torch.float64)
    assert layer(X)[0].shape == (6, 4, 8)
    with torch.no_grad():
        assert rnnkern.plan(layer, X) == rnnkern.plan(copy.deepcopy(layer).requires_grad_(False), X)
    layer.requires_grad_(False).adapter.requires_grad_()
    assert rnnkern.plan(layer, X)["saved_bytes"] == 0


@pytest.mark.parametrize(("make", "weight"), [(rnnkern.LSTM, "weight_hh_l0"), (rnnkern.LSTMCell, "weight_hh")])
def test_to_look_evaluates_no_parametrisation(make, weight):
    layer, x = torch.nn.utils.parametrizations.spectral_norm(make(5, 8), weight), X if make is rnnkern.LSTM else X[0]
    before = copy.deepcopy(layer.state_dict())
    state = torch.get_rng_state()
    assert rnnkern.plan(layer, x)["saved_bytes"] > 0 and rnnkern.explain(layer, x)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_knows_what_trains_a_parametrised_weight():
    """An adapter's own numbers, of another dtype than the frozen weight that it is beside."""

    class Adapter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, weight):
            return weight * self.scale.to(weight.dtype)

    layer = rnnkern.GRU(5, 8).requires_grad_(False)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Adapter())
    assert layer(X)[0].requires_grad and rnnkern.plan(layer, X)["saved_bytes"] > 0


def test_members_of_an_ensemble_that_follow_each_other_share_memory():
    """Of both directions too, the second of which adds to the first's gradient of x."""
    sizes = {"steps": 50, "batch": 4, "rows": 200, "input_size": 64, "hidden_size": 64}
    options = {"cell": "lstm", "dtype": "float32", "device": "cpu", "save": True, "recompute": True, "threads": 2}
    few, many = (_C.plan(**sizes, **options, groups=groups)["bytes"] for groups in (8, 128))
    assert many < 1.1 * few


def run_with(**environment):
    program = (
        "try:\n"
        "    import torch, rnnkern\n"
        "    rnnkern.GRU(5, 8)(torch.zeros(6, 4, 5))\n"
        "    print(rnnkern.build_info()['cpu_isa'])\n"
        "except ValueError as error:\n"
        "    print('ValueError', error)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(rnnkern.__file__).parents[1],  # a program finds this build, not one where the tests were started
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_environment_forces_a_strategy_and_an_instruction_set():
    known = ", ".join(rnnkern.strategies())
    assert run_with(RNNKERN_FORCE_STRATEGY="magic") == f"ValueError strategy: expected one of {known}, got 'magic'"
    assert run_with(RNNKERN_FORCE_STRATEGY="simd", RNNKERN_CPU_ISA="portable") == "portable"
    known = ", ".join(_C.cpu_isas())
    assert run_with(RNNKERN_CPU_ISA="sse9") == f"ValueError RNNKERN_CPU_ISA: expected one of {known}, got 'sse9'"


@pytest.mark.skipif(rnnkern.build_info()["cuda"] is None, reason="built without CUDA")
def test_a_strategy_of_another_backend_leaves_the_cpu_alone():
    with rnnkern.strategy("stepwise"):
        assert rnnkern.plan(rnnkern.GRU(5, 8), X)["strategy"] == "simd"


def plan_on(gpu, layer, x):
    """The plan for a GPU that need not be there: of its numbers alone."""
    return module._plan(layer, module._problem(layer, x) | {"device": "cuda", "gpu": gpu})


def test_a_gpu_plan_names_each_sweep():
    layer, x = rnnkern.LSTM(64, 256, 2, bidirectional=True), torch.zeros(50, 16, 64)
    plan = plan_on(H100, layer.bfloat16(), x.bfloat16())
    assert plan["backend"] == "cuda" and plan["strategy"] == plan["forward"]["strategy"] == "stationary:cluster"
    for name in ("forward", "backward"):
        sweep = plan[name]
        assert sweep["exchange"] == sweep["strategy"].split(":")[1] and sweep["arithmetic"] == "bfloat16"
        assert sweep["units"] % 8 == 0 and sweep["units"] * sweep["team"] >= 256
        copies = sweep["blocks"] // sweep["team"]  # of the weights of both directions
        assert copies % 2 == 0 and copies // 2 * sweep["tiles"] * sweep["tile_rows"] >= 16
        assert sweep["shared_bytes"] <= H100["shared_bytes"] and sweep["threads"] % 32 == 0
        assert sweep["us"] > 50 * sweep["us_per_step"] > 0
        assert set(sweep["rejected"]) == {"stepwise", *(f"stationary:{e}" for e in ("block", "cluster", "grid"))} - {
            sweep["strategy"]
        }
    assert plan["bytes"] >= max(plan["forward"]["bytes"], plan["backward"]["bytes"])
    assert plan["rejected"]["simd"] == "runs on cpu"
    with torch.no_grad():
        assert "backward" not in plan_on(H100, layer, x.bfloat16())


def test_the_precision_of_float32_follows_torchs_settings_for_rnns():
    layer, x = rnnkern.GRU(64, 256), torch.zeros(50, 16, 64)
    settings = torch.backends.cudnn
    for allowed in (True, False):
        with settings.flags(enabled=True, allow_tf32=allowed):  # the setting of every torch
            sweep = plan_on(H100, layer, x)["forward"]
            assert (sweep["arithmetic"] == "TF32") == allowed
            assert rnnkern.plan(layer, x)["strategy"] == "simd"
    before = settings.rnn.fp32_precision, settings.conv.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            settings.rnn.fp32_precision = precision
            sweep = plan_on(H100, layer, x)["forward"]
            assert (sweep["arithmetic"] == "TF32") == (precision == "tf32")
        settings.conv.fp32_precision = "tf32"  # of another operator
        assert plan_on(H100, layer, x)["forward"]["arithmetic"] != "TF32"
    finally:
        settings.rnn.fp32_precision, settings.conv.fp32_precision = before


def test_a_gpu_plan_says_what_is_missing():
    layer, x = rnnkern.GRU(64, 256), torch.zeros(50, 16, 64)
    ampere = plan_on(A100, layer, x)
    assert ampere["strategy"] == "stationary:grid"
    assert ampere["rejected"]["stationary:cluster"] == "no clusters on this GPU"
    turing = plan_on(T4, layer, x)
    assert turing["strategy"] == "stepwise" and "exchange" not in turing["forward"]
    assert turing["rejected"]["stationary:grid"] == "needs compute capability 8.0, this is 7.5"
    assert "float64" in plan_on(H100, layer.double(), x.double())["rejected"]["stationary:block"]


def test_explain_prints_the_sweeps_of_a_gpu_plan():
    layer = rnnkern.LSTM(64, 256).half()
    plan = plan_on(H100, layer, torch.zeros(50, 16, 64).half())
    text = module._explain(layer, plan)
    assert text.startswith("LSTM(64, 256) on cuda\n") and "workers" not in text
    for name in ("forward", "backward"):
        sweep, (line,) = plan[name], [line for line in text.splitlines() if line.startswith(f"  {name:<8}  ")]
        for part in (
            sweep["strategy"],
            f"{sweep['blocks']} blocks of {sweep['threads']} threads",
            f"{sweep['units']} units",
            f"{sweep['tiles']} x {sweep['tile_rows']} batch rows",
            f"{sweep['bytes']:,} bytes",
            f"{sweep['us_per_step']:.2f} µs a step",
        ):
            assert part in line
    for name, reason in plan["backward"]["rejected"].items():
        assert f"  backward, not {name}: {reason}" in text


@pytest.mark.skipif(rnnkern.build_info()["cuda"] is None, reason="built without CUDA")
def test_a_forced_strategy_that_cannot_run_says_why():
    layer, x = rnnkern.LSTM(8, 1024).bfloat16(), torch.zeros(6, 4, 8).bfloat16()
    with rnnkern.strategy("stationary"):
        assert plan_on(A100, layer, x)["strategy"] == "stationary:grid"
    with rnnkern.strategy("stepwise"):
        assert plan_on(A100, layer, x)["strategy"] == "stepwise"
    with (
        rnnkern.strategy("stationary:block"),
        pytest.raises(ValueError, match="'stationary:block' is forced, but .*need"),
    ):
        plan_on(A100, layer, x)
