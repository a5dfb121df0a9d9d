"""The goals on a CPU, against the better of torch.nn and ONNX Runtime unless they say otherwise."""

from __future__ import annotations

from goal import (
    Case,
    Goal,
    against,
    against_float32,
    against_padded,
    better,
    microseconds,
    surely,
    times_floor,
)
from stats import SLOWER


def about(mode: str, threads: int | None = None, cells=("lstm", "gru", "rnn"), dtype: str = "float32", **bounds):
    """Problems with one plain layer, of these; ``batch``, ``hidden`` and ``steps`` are each from and to."""

    def picks(case: Case) -> bool:
        p = case.problem
        plain = p.layers == 1 and not (p.bidirectional or p.projection or p.packed or p.reset) and p.one_call
        inside = all(low <= getattr(p, name) <= high for name, (low, high) in bounds.items())
        right_threads = threads is None or case.run.threads == threads
        return p.mode == mode and plain and inside and p.cell in cells and p.dtype == dtype and right_threads

    return picks


def packed(steps: int):
    return lambda case: case.problem.packed and case.problem.mode == "training" and case.problem.steps >= steps


def in_composed(picks):
    return lambda case: case.run.suite == "composed" and picks(case.problem)


def in_suites(*suites: str):
    """All problems in float32 of these suites."""
    return lambda case: case.run.suite in suites and case.problem.dtype == "float32"


ONE, ANY = (1, 1), 10**9
BATCH_1 = "inference B 1, one thread"
STEP = "`step()`, B 1"


def one_thread(**bounds):
    return about("inference", 1, batch=ONE, steps=(100, 100), **bounds)


CPU = [
    Goal(f"{BATCH_1}, H ≤ 64", "≥ 1.5× better peer", one_thread(hidden=(1, 64)), better, least=1.5),
    Goal(f"{BATCH_1}, H ≥ 128", "≤ 1.15× floor (products in turn)", one_thread(hidden=(128, ANY)), times_floor,
         most=1.15),
    Goal(f"{BATCH_1}, H ≥ 128", "≥ 1.0× better peer", one_thread(hidden=(128, ANY)), better, least=1.0),
    Goal(f"{BATCH_1}, LSTM H ≥ 256", "≥ 1.2× better peer", one_thread(hidden=(256, ANY), cells=["lstm"]), better,
         least=1.2),
    Goal(f"{BATCH_1}, GRU H ≤ 64", "≥ 4× torch", one_thread(hidden=(1, 64), cells=["gru"]), against("torch.nn"),
         least=4.0),
    Goal(f"{BATCH_1}, GRU H 128", "≥ 3× torch", one_thread(hidden=(128, 128), cells=["gru"]), against("torch.nn"),
         least=3.0),
    Goal(f"{BATCH_1}, GRU H 256", "≥ 2× torch", one_thread(hidden=(256, 256), cells=["gru"]), against("torch.nn"),
         least=2.0),
    Goal(f"{BATCH_1}, GRU H 512", "≥ 2× torch", one_thread(hidden=(512, 512), cells=["gru"]), against("torch.nn"),
         least=2.0),
    Goal("inference B 1, two threads, H ≥ 128", "≥ 1.2× better peer",
         about("inference", 2, batch=ONE, steps=(100, 100), hidden=(128, ANY)), better, least=1.2),
    Goal(f"{STEP}, LSTM H 32", "≥ 10× torch's call", about("step", batch=ONE, hidden=(32, 32), cells=["lstm"]),
         against("torch.nn"), least=10.0),
    Goal(f"{STEP}, H 32", "≤ 8 µs", about("step", batch=ONE, hidden=(32, 32)), microseconds, most=8.0, unit=" µs"),
    Goal(f"{STEP}, H ≤ 128", "faster than ONNX Runtime's call", about("step", batch=ONE, hidden=(1, 128)),
         against("onnxruntime"), least=1.0),
    Goal(f"{STEP}, H 256", "faster than ONNX Runtime's call", about("step", batch=ONE, hidden=(256, 256)),
         against("onnxruntime"), least=1.0),
    Goal(f"{STEP}, H 256", "≤ 1.3× streaming the weights", about("step", batch=ONE, hidden=(256, 256)), times_floor,
         most=1.3),
    Goal("GRU and RNN training B 1, T ≥ 100", "≥ 5× torch",
         about("training", batch=ONE, steps=(100, ANY), cells=["gru", "rnn"]), better, least=5.0),
    Goal("GRU and RNN training B 16, T ≥ 100", "≥ 2× torch",
         about("training", batch=(16, 16), steps=(100, ANY), cells=["gru", "rnn"]), better, least=2.0),
    Goal("LSTM training B ≤ 4, H ≤ 128, T ≥ 400", "≥ 2× torch",
         about("training", batch=(1, 4), hidden=(1, 128), steps=(400, ANY), cells=["lstm"]), better, least=2.0),
    Goal("LSTM training B ≤ 4, H ≤ 128, T 100", "≥ 1.5× torch",
         about("training", batch=(1, 4), hidden=(1, 128), steps=(100, 100), cells=["lstm"]), better, least=1.5),
    Goal("LSTM training B ≤ 4, H > 128", "≥ 1.2× torch",
         about("training", batch=(1, 4), hidden=(129, ANY), cells=["lstm"]), better, least=1.2),
    Goal("LSTM training B 5 to 16", "≥ 1.2× torch", about("training", batch=(5, 16), cells=["lstm"]), better,
         least=1.2),
    Goal("packed training", "≤ 1.1× our padded time × useful fraction", packed(100), against_padded, most=1.1),
    Goal("packed training, T 1000", "≥ 5× torch's", packed(1000), against("torch.nn"), least=5.0),
    Goal("bf16 storage at B 1, H ≥ 512", "≥ 1.8× our own fp32",
         about("inference", batch=ONE, hidden=(512, ANY), dtype="bfloat16"), against_float32, least=1.8),
    Goal("int8 weights at B 1, H ≥ 512", "≥ 2× our own fp32", about("inference", batch=ONE, hidden=(512, ANY),
         cells=["lstm", "gru"]), against("rnnkern", "rnnkern int8"), least=2.0),
    Goal("int8 weights, LSTM at B 1, H ≥ 512", "≥ 1.2× torch's dynamic int8",
         about("inference", batch=ONE, hidden=(512, ANY), cells=["lstm"]), against("torch int8", "rnnkern int8"),
         least=1.2),
    Goal("a call, LSTM H 32, B 1, T 1, inference and training", "≥ 2× torch (≤ 0.5× its time)",
         in_composed(lambda p: p.cell == "lstm" and p.steps == 1), against("torch.nn"), least=2.0),
    Goal("a compiled layer", "not slower than the eager one", in_composed(lambda p: p.one_call),
         against("rnnkern", "rnnkern compiled"), least=1.0),
    Goal("a vmapped ensemble of 8, I 8, H 64, B 32, T 16", "≥ 3× torch's loop",
         in_composed(lambda p: p.members > 1), against("torch.nn"), least=3.0),
    Goal("per-sample gradients, H 64, B 32, T 32", "≥ 10× torch's loop",
         in_composed(lambda p: p.mode == "per-sample"), against("torch.nn"), least=10.0),
    Goal("a loop over cells, T 10", "≥ 1.0× torch's cells", in_composed(lambda p: p.cells), against("torch.nn"),
         least=1.0),
    Goal("large batch (B ≥ 64), inference", "nowhere slower", about("inference", batch=(64, ANY)), surely,
         least=SLOWER),
    Goal("large batch (B ≥ 64), training", "nowhere slower", about("training", batch=(64, ANY)), surely, least=SLOWER),
    Goal("`grid`, all that was measured of it", "nowhere slower", in_suites("grid"), surely, least=SLOWER),
    Goal("`shapes`, all that was measured of it", "nowhere slower", in_suites("shapes"), surely, least=SLOWER),
]  # fmt: skip
