"""Times several sides of one problem alternately in one process.

Other programs, turbo clocks and temperature drift while a benchmark runs; what is measured right after each other
drifts together, so a ratio is taken of samples of the same round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ROUNDS = 30  # the most samples a side
MIN_ROUNDS = 5  # taken even when they outlast the budget, unless they would take PATIENCE times as long
PATIENCE = 5
LONG_CALL = 0.05  # seconds; longer calls need no untimed call before each sample


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


def interleave(
    sides: dict[str, Callable[[int], object]], *, device: str = "cpu", budget: float = 2.0, rounds: int = ROUNDS
) -> dict[str, Timed]:
    """Rounds of one sample a side, until there are ``rounds``, or ``budget`` seconds have passed.

    A side is a function of a running number, by which it rotates its inputs. A sample takes as many calls as fit the
    budget; it follows a call that is not timed, which wakes the side's threads and brings its weights into the cache.
    """
    clock = cuda_seconds if torch.device(device).type == "cuda" else wall_seconds
    timed: dict[str, Timed] = {}
    is_long: dict[str, bool] = {}
    counter = 0

    def run(side: Callable[[int], object], calls: int) -> None:
        nonlocal counter
        for _ in range(calls):
            side(counter)
            counter += 1

    for name, side in sides.items():
        run(side, 1)
        once = clock(lambda side=side: run(side, 1))
        if once < LONG_CALL:  # the least of some: one that was disturbed would make the samples small
            once = min(once, *(clock(lambda side=side: run(side, 1)) for _ in range(5)))
        target = budget / (ROUNDS * len(sides))
        timed[name] = Timed(calls=max(1, min(10_000, round(target / max(once, 1e-9)))))
        is_long[name] = once >= LONG_CALL

    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        names = list(sides)
        for done in range(rounds):
            over = (time.perf_counter() - start) / budget
            if (done >= MIN_ROUNDS and over > 1) or (done >= 2 and over > PATIENCE):
                break
            first = done % len(names)  # nobody is always the one that comes after the slowest
            for name in names[first:] + names[:first]:
                if not is_long[name]:
                    run(sides[name], 1)
                one = timed[name]
                one.samples.append(clock(lambda name=name, one=one: run(sides[name], one.calls)) / one.calls)
    finally:
        if enabled:
            gc.enable()
    return timed
