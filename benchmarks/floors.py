"""What the machine can do at most, measured, and from it the least time that a problem can take: its floor.

On a CPU: a compiled loop (``limits/cpu.cpp``) reads from each level of the caches and multiplies in registers, in as
many threads as the run has; ``torch.mm`` gives the rate of products. On a GPU ``limits/gpu.cu`` measures launches, hops
and barriers between blocks and bandwidths. Every figure is the best of some tries, on a CPU also of all processes of a
run, since what disturbs a machine for minutes would make a floor too high.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from suites import GATES, Problem
from timing import wait_for_idle_threads

SOURCES = Path(__file__).parent / "limits"
LEVELS = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}  # bytes, where the system does not say
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
ONE_BLOCK = 320_000  # bytes of weights that one multiprocessor holds in registers and shared memory


def measure_limits(device: str, threads: int, seconds: float = 0.05) -> dict[str, Any]:
    """What stands under ``limits`` in the results; ``seconds`` is the length of one try on the CPU."""
    kind = torch.device(device).type
    found: dict[str, Any] = {"threads": threads}
    try:
        found |= measure_gpu() if kind == "cuda" else measure_cpu(threads, seconds)
    except (OSError, subprocess.SubprocessError) as error:
        found["missing"] = f"not measured: {error}"
    found["gemm_gflops"] = {dtype: gemm_rate(dtype, device) for dtype in ("float32", "bfloat16")}
    return found


def best(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Of what two processes found on one CPU, the higher rates."""
    if "caches" not in before:
        return now
    if "caches" not in now:
        return before
    caches = [max(pair, key=lambda cache: cache["gbs"]) for pair in zip(before["caches"], now["caches"], strict=True)]
    gemm = {dtype: max(rate, now["gemm_gflops"][dtype]) for dtype, rate in before["gemm_gflops"].items()}
    return before | {
        "caches": caches,
        "fma_gflops": max(before["fma_gflops"], now["fma_gflops"]),
        "gemm_gflops": gemm,
    }


def gemm_rate(dtype: str, device: str) -> float:
    """GFLOP/s of a large product; on a GPU in the precision that its recurrent layers are allowed."""
    size = GEMM_SIZE[torch.device(device).type]
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    try:
        return product_rate(size, dtype, device)
    finally:
        matmul.fp32_precision = before


def product_rate(size: int, dtype: str, device: str) -> float:
    a, b = (torch.ones(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e9, 1)


# ---------------------------------------------------------------- CPU


def cache_sizes() -> dict[str, int]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) << 10
    return found or dict(LEVELS)


@functools.lru_cache(maxsize=1)
def compiled() -> ctypes.CDLL | Exception:
    """``limits/cpu.cpp``, compiled once a process, or why it is not."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "cpu.so")
            compiler = shlex.split(os.environ.get("CXX", "c++"))
            options = ["-O3", "-march=native", "-shared", "-fPIC"]
            command = [*compiler, *options, str(SOURCES / "cpu.cpp"), "-o", str(library)]
            subprocess.run(command, check=True, capture_output=True)
            routines = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        return error
    routines.read_all.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    routines.multiply_add.argtypes = [ctypes.c_size_t]
    routines.take_turns.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    routines.take_turns.restype = ctypes.c_double
    return routines


def hop_ns() -> float | None:
    """Nanoseconds until one core sees what another has written, the first two that this process may use; None where it
    is not known.

    A virtual machine's processors move: two of one core, two beside one third cache and two of different ones are 14,
    30 and 170 ns apart (two virtual Zen 4 processors), and threads that share a step wait for that.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2 or isinstance(routines := compiled(), Exception):
        return None
    took = []

    def taking_turns(index: int, repeats: int) -> None:
        with contextlib.suppress(OSError):  # the system may forbid it
            os.sched_setaffinity(0, {cores[index]})  # of this thread, which ends with it
        took.append(routines.take_turns(index, repeats))

    wait_for_idle_threads()
    for _ in range(4):
        elapsed(taking_turns, 2, 500)
    return round(min(took), 1)


def measure_cpu(threads: int, seconds: float) -> dict[str, Any]:
    routines = compiled()
    if isinstance(routines, Exception):
        raise routines
    flops = 2 * 12 * routines.vector_bytes() / 4
    caches, below = [], 0
    sizes = cache_sizes()
    for level, size in sizes.items():
        read = (below + size) // 2 // (threads if level == "L3" else 1)
        reads = [read]
        while level == "L3" and reads[-1] > 6 * below:  # a virtual machine may hold less of it than there is
            reads.append(reads[-1] // 2)
        rates = [bandwidth(routines, read, threads, seconds) for read in reads]
        caches.append({"level": level, "bytes": size, "gbs": max(rates)})
        below = size
    beyond = min(4 * below, 512 << 20)
    caches.append({"level": "memory", "bytes": None, "gbs": bandwidth(routines, beyond // threads, threads, seconds)})
    fma = threads * flops * rate(lambda index, repeats: routines.multiply_add(repeats), threads, seconds) / 1e9
    return {"caches": caches, "fma_gflops": round(fma, 1)}


def bandwidth(routines: Any, size: int, threads: int, seconds: float) -> float:
    """GB/s of all threads together, each reading ``size`` bytes of its own again and again."""
    size = max(768, size // 768 * 768)
    tensors = [torch.zeros(size // 4 + 16) for _ in range(threads)]
    starts = [(tensor.data_ptr() + 63) // 64 * 64 for tensor in tensors]
    passes = rate(lambda index, repeats: routines.read_all(starts[index], size, repeats), threads, seconds)
    return round(threads * passes * size / 1e9, 1)


def rate(routine: Callable[[int, int], Any], threads: int, seconds: float) -> float:
    """Repeats a second of ``routine(thread, repeats)`` while all threads run it: the best of five tries."""
    repeats = 1
    while (once := elapsed(routine, 1, repeats)) < seconds / 10:
        repeats *= 4
    repeats = max(1, int(repeats * seconds / once))
    return repeats / min(elapsed(routine, threads, repeats) for _ in range(5))


def elapsed(routine: Callable[[int, int], Any], threads: int, repeats: int) -> float:
    """Seconds of the slowest thread; ctypes lets the others run meanwhile."""
    took = [0.0] * threads
    together = threading.Barrier(threads)

    def run(index: int) -> None:
        together.wait()
        start = time.perf_counter()
        routine(index, repeats)
        took[index] = time.perf_counter() - start

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(took)


# ---------------------------------------------------------------- GPU


def measure_gpu() -> dict[str, Any]:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "gpu")
        command = [nvcc, "-O3", "-std=c++17", "-arch=native", str(SOURCES / "gpu.cu"), "-o", str(program)]
        subprocess.run(command, check=True, capture_output=True)
        found = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60)
        return json.loads(found.stdout)


# ---------------------------------------------------------------- floors


def floor(problem: Problem, limits: dict[str, Any], in_turn: bool = False) -> float | None:
    """Seconds that one call takes at least; None where the limits are not known.

    Every step of a sweep streams the recurrent weights from where they fit (on a GPU: takes a flag's hop, once they lie
    on the chip) and multiplies them at the peak rate; a step from the zero state does nothing. The input products and,
    in training, those for the weights' gradients run at the peak rate. Training has two sweeps. A GPU runs both
    directions at once.

    On a CPU products may run while weights stream, so that the longer of both is left; ``in_turn``: at least if they
    do not, as on a GPU, where each step takes the longer of its own two and the products over all steps come on top.
    """
    if not limits or "missing" in limits or not problem.one_call:
        return None
    training = problem.mode == "training"
    directions = 2 if problem.bidirectional else 1
    rows = problem.batch * problem.useful
    size = getattr(torch, problem.dtype).itemsize
    width = problem.projection or problem.hidden
    recurrent = GATES[problem.cell] * problem.hidden * width + problem.projection * problem.hidden
    sweeps = directions if "caches" in limits else 1
    together = directions // sweeps
    steps = problem.steps - (problem.mode != "step")
    seconds = streams = products = 0.0
    for k in range(problem.layers):
        inputs = GATES[problem.cell] * problem.hidden * (problem.input_size if k == 0 else directions * width)
        flops = 2 * rows * recurrent * together
        sweep = step_seconds(recurrent * size, flops, rows, together, problem.dtype, limits)
        product = flops / peak(problem.dtype, limits)
        per_step = (2 * sweep + product) if training else sweep
        of_inputs = (3 if training else 1) * 2 * rows * problem.steps * inputs / peak(problem.dtype, limits)
        once = stream(inputs * size, limits)
        seconds += sweeps * steps * per_step + directions * max(once, of_inputs)
        streams += directions * (once + (2 if training else 1) * steps * stream(recurrent * size, limits))
        products += directions * ((3 if training else 1) * steps * product + of_inputs)
    return seconds if in_turn or "caches" not in limits else max(streams, products)


def peak(dtype: str, limits: dict[str, Any]) -> float:
    """Floating-point operations a second."""
    gemm, fma = limits["gemm_gflops"], limits.get("fma_gflops", 0.0)
    if dtype == "float64":
        return 1e9 * max(fma, gemm["float32"]) / 2
    return 1e9 * max(fma, gemm["float32" if dtype == "float32" else "bfloat16"])


def stream(size: float, limits: dict[str, Any]) -> float:
    """Seconds to read so many bytes, each level of the caches filled as far as it goes."""
    if "caches" not in limits:
        return size / (1e9 * limits["l2_gbs" if size <= limits["l2_bytes"] else "memory_gbs"])
    seconds, below = 0.0, 0
    for cache in limits["caches"]:
        private = limits["threads"] if cache["level"] in ("L1", "L2") else 1
        upto = size if cache["bytes"] is None else min(size, cache["bytes"] * private)
        seconds += max(0, upto - below) / (1e9 * cache["gbs"])
        below = max(below, upto)
    return seconds


def step_seconds(size: float, flops: float, rows: float, together: int, dtype: str, limits: dict[str, Any]) -> float:
    """One step of ``together`` sweeps: ``size`` bytes of weights and ``rows`` rows of each, ``flops`` of all."""
    product = flops / peak(dtype, limits)
    if "caches" in limits:
        return max(product, stream(size, limits))
    if size <= ONE_BLOCK:
        return max(1e-6 * limits["block_us"], product * max(1.0, limits["multiprocessors"] / (rows * together)))
    held = ONE_BLOCK * limits["multiprocessors"]
    return max(1e-6 * limits["flag_us"], product, stream(max(0, size * together - held), limits))
