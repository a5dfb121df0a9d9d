"""Times several sides of one problem alternately in one process.

Other programs, turbo clocks and temperature drift while a benchmark runs; what is measured right after each other
drifts together, so a ratio is taken of samples of the same round.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

ROUNDS = 30  # the most samples a side
LEAST_ROUNDS = 5  # taken even when they outlast the budget, unless they would take PATIENCE times as long
PATIENCE = 5
LONG_CALL = 0.05  # seconds; longer calls need no untimed call before each sample
QUIET, MOST_WAIT = 0.002, 0.2  # seconds: no thread may run for so long before a sample; the longest wait for that


@dataclass
class Timed:
    """``samples`` are seconds a call, each the mean of ``calls`` calls."""

    calls: int
    samples: list[float] = field(default_factory=list)


def wall_seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cuda_seconds(function: Callable[[], None]) -> float:
    """On the device's own clock, from the first to the last of what the function enqueued."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def wait_for_idle_threads() -> float:
    """Until no thread of this process runs any more; the seconds it took.

    Threads that wait for their next call spin, OpenMP's for 10 ms: on a core that the next side needs.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < MOST_WAIT:
        used = time.process_time()
        time.sleep(QUIET)
        if time.process_time() - used < QUIET / 10:
            break
    return time.perf_counter() - start


def nothing(side: str) -> None:
    """What ``interleave`` tells of the side that it turns to, by default to nobody."""


def interleave(
    sides: dict[str, Callable[[int], object]],
    *,
    device: str = "cpu",
    budget: float = 2.0,
    rounds: int = ROUNDS,
    least: int = LEAST_ROUNDS,
    patience: float = PATIENCE,
    turn_to: Callable[[str], None] = nothing,
) -> dict[str, Timed]:
    """Rounds of one sample a side, until there are ``rounds``, or ``budget`` seconds a side have passed.

    A side is a function of a running number, by which it rotates its inputs. A sample takes as many calls as fit the
    budget; it follows a call that is not timed, which wakes the side's threads and brings its weights into the cache.
    On the CPU no thread of the side before runs any more then; waiting for that is no part of the budget.
    ``turn_to`` hears the name of each side before it runs.
    """
    on_cpu = torch.device(device).type == "cpu"
    clock = wall_seconds if on_cpu else cuda_seconds
    counter, waited = 0, 0.0

    def run(side: Callable[[int], object], calls: int) -> None:
        nonlocal counter
        for _ in range(calls):
            side(counter)
            counter += 1

    def turn(name: str) -> None:
        nonlocal waited
        if on_cpu:
            waited += wait_for_idle_threads()
        turn_to(name)

    def once(name: str) -> float:
        turn(name)
        run(sides[name], 1)
        seconds = clock(lambda: run(sides[name], 1))
        if seconds < LONG_CALL:  # the least of some: one that was disturbed would make the samples small
            seconds = min(seconds, *(clock(lambda: run(sides[name], 1)) for _ in range(5)))
        return seconds

    def sample(name: str) -> float:
        turn(name)
        if not is_long[name]:
            run(sides[name], 1)
        calls = timed[name].calls
        return clock(lambda: run(sides[name], calls)) / calls

    seconds = {name: once(name) for name in sides}
    target = budget / ROUNDS
    timed = {name: Timed(calls=max(1, min(10_000, round(target / max(s, 1e-9))))) for name, s in seconds.items()}
    is_long = {name: s >= LONG_CALL for name, s in seconds.items()}
    names = list(sides)
    with no_garbage_collection():
        start, waited = time.perf_counter(), 0.0
        for done in range(rounds):
            over = (time.perf_counter() - start - waited) / (budget * len(names))
            if (done >= least and over > 1) or (done >= 2 and over > patience):
                break
            first = done % len(names)  # nobody is always the first, nor the one that comes after the slowest
            for name in (names[first:] + names[:first])[:: -1 if done // len(names) % 2 else 1]:
                timed[name].samples.append(sample(name))
    return timed


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
