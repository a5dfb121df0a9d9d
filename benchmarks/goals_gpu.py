"""The goals on a GPU, against cuDNN through torch.nn, forward and with backward."""

from __future__ import annotations

from dataclasses import replace

from floors import floor
from goal import Case, Goal, against, median, microseconds, surely
from stats import SLOWER
from suites import Problem

CUDNN = against("torch.nn")
# Modelled for an H100: µs a step of an LSTM's forward recurrence, without the input product, by H.
HIDDEN = (64, 128, 256, 512, 768, 1024, 2048)
NARROW = {
    1: (0.26, 0.40, 0.45, 0.64, 0.91, 0.97, 1.35),
    16: (0.26, 0.44, 0.57, 0.88, 1.3, 1.6, 3.3),
    64: (0.26, 0.44, 0.62, 1.1, 2.2, 4.2, 10.6),
    256: (0.26, 0.44, 1.05, 2.5, 5.0, 9.5, 30),
}
FLOAT32 = {16: (0.50, 0.63, 1.0, 1.9, 2.7, 3.7, 28)}


def modelled(problem: Problem) -> float | None:
    """µs a step, where the table has one."""
    rows = FLOAT32 if problem.dtype == "float32" else NARROW
    fits = problem.cell == "lstm" and problem.mode == "inference" and problem.hidden in HIDDEN and is_plain(problem)
    if not fits or problem.steps < 100:
        return None
    row = rows.get(problem.batch)
    return row[HIDDEN.index(problem.hidden)] if row else None


def times_model(case: Case) -> float | None:
    """Our time over the modelled recurrence and the input product at the rate that was measured."""
    least, took, limits = modelled(case.problem), microseconds(case), case.run.results.limits
    if not least or not took or not limits:
        return None
    p = case.problem
    rate = limits["gemm_gflops"]["float32" if p.dtype == "float32" else "bfloat16"]
    product = 2 * p.batch * 4 * p.hidden * p.hidden / (1e3 * rate)
    return took / (least + product)


def backward(case: Case) -> float | None:
    """× faster in what training takes beyond inference of the same problem; both of one run."""
    plain = replace(case.problem, mode="inference")
    forward = next((sides for problem, sides in case.run.problems() if problem == plain), {})
    times = [[median(sides.get(side, [])) for sides in (case.sides, forward)] for side in ("rnnkern", "torch.nn")]
    if any(time is None for pair in times for time in pair):
        return None
    (ours, ours_forward), (theirs, theirs_forward) = times
    return (theirs - theirs_forward) / max(ours - ours_forward, 1e-12)


def is_plain(p: Problem) -> bool:
    return p.layers == 1 and not (p.bidirectional or p.projection or p.packed or p.reset)


def odd(p: Problem) -> bool:
    return p.packed or p.bidirectional or p.layers > 1 or p.hidden % 8 > 0


def persistent(p: Problem) -> bool:
    """cuDNN has its persistent kernel."""
    sizes = p.hidden <= 1024 and p.hidden % 128 == 0 and p.batch % 8 == 0 and p.batch <= 128
    return p.dtype == "float16" and p.cell == "lstm" and is_plain(p) and sizes


def leaves_room(case: Case) -> bool:
    """1.3 × the floor is less than cuDNN's time over 1.3."""
    least, theirs = floor(case.problem, case.run.results.limits), median(case.sides.get("torch.nn", []))
    return persistent(case.problem) and bool(least and theirs) and 1.3 * least <= theirs / 1.3


def middle(p: Problem) -> bool:
    return is_plain(p) and 256 <= p.hidden <= 1024 and p.batch <= 64 and not persistent(p) and p.hidden % 8 == 0


def small(p: Problem) -> bool:
    return is_plain(p) and p.hidden <= 128 and not persistent(p)


def rest(p: Problem) -> bool:
    return not (middle(p) or small(p) or odd(p) or persistent(p) or p.reset)


def of(picks, *modes: str):
    return lambda case: picks(case.problem) and case.problem.mode in (modes or ("inference", "training"))


GPU = [
    Goal("256 ≤ H ≤ 1024, B ≤ 64: inference", "≥ 4× cuDNN", of(middle, "inference"), CUDNN, least=4.0),
    Goal("256 ≤ H ≤ 1024, B ≤ 64: training", "≥ 4× cuDNN", of(middle, "training"), CUDNN, least=4.0),
    Goal("backward alone, H 129 to 255", "≥ 5× cuDNN",
         of(lambda p: is_plain(p) and 129 <= p.hidden <= 255, "training"), backward, least=5.0),
    Goal("packed, bidirectional, several layers, odd sizes", "≥ 3× cuDNN", of(odd), CUDNN, least=3.0),
    Goal("fp16 LSTM where cuDNN has its persistent kernel", "≥ 1.0× cuDNN", of(persistent), CUDNN, least=1.0),
    Goal("of these, where 1.3 × the floor leaves room", "≥ 1.3× cuDNN", leaves_room, CUDNN, least=1.3),
    Goal("H ≤ 128", "≥ 1.5× cuDNN", of(small), CUDNN, least=1.5),
    Goal("cuDNN's calls and ours in CUDA graphs", "≥ 1.0× cuDNN", lambda case: "rnnkern CUDA graph" in case.sides,
         against("torch CUDA graph", side="rnnkern CUDA graph"), least=1.0),
    Goal("everything else", "≥ 1.0× cuDNN, nowhere slower", of(rest), surely, least=SLOWER),
    Goal("beside FlashRNN", "≥ 3×", lambda case: "flashrnn" in case.sides, against("flashrnn"), least=3.0),
    Goal("beside Haste", "≥ 5×", lambda case: "haste_pytorch" in case.sides, against("haste_pytorch"), least=5.0),
    Goal("resets, beside a loop of torch's cells", "≥ 10×", lambda case: case.problem.reset > 0,
         against("torch reset loop"), least=10.0),
    Goal("distance to the modelled floor, LSTM inference", "≤ 1.5×",
         lambda case: modelled(case.problem) is not None, times_model, most=1.5),
]  # fmt: skip
