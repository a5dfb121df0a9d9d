"""Statistics of samples: the spread of one side, the ratio of two that were taken in turn, and how sure it is."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

import torch

SLOWER = 0.95  # a side is slower where the lower end of its ratio's interval is below this
LEAST_PAIRS = 30  # that a claim rests on,
LEAST_PROCESSES = 3  # from so many processes
DRAWS = 1000


def spread(samples: list[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    if len(samples) < 2:
        return samples[0], 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle, high - low


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other side takes, with its 95 % interval, and what it rests on."""

    value: float
    low: float
    high: float
    pairs: int
    processes: int

    @property
    def enough(self) -> bool:
        """Whether "nowhere slower" may be said of it or denied."""
        return self.pairs >= LEAST_PAIRS and self.processes >= LEAST_PROCESSES

    @property
    def slower(self) -> bool:
        return self.low < SLOWER


def ratio(groups: list[tuple[list[float], list[float]]]) -> Ratio | None:
    """Of ``(ours, theirs)`` of each process, sample by sample in pairs. None without a pair."""
    pairs = [[t / o for o, t in zip(ours, theirs, strict=False)] for ours, theirs in groups]
    pairs = [group for group in pairs if group]
    if not pairs:
        return None
    everything = [value for group in pairs for value in group]
    low, high = bootstrap(everything)
    return Ratio(statistics.median(everything), low, high, len(everything), len(pairs))


def bootstrap(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median: of medians of as many values, drawn with replacement. The same every time."""
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    medians = ordered[drawn_middles(len(values))].mean(1).sort().values
    return medians[int(0.025 * DRAWS)].item(), medians[int(0.975 * DRAWS) - 1].item()


@functools.cache
def drawn_middles(count: int) -> torch.Tensor:
    """``[DRAWS, 2]``: of each draw from ``count`` ordered values, where the two lie that its median is the mean of."""
    drawn = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0)).sort(1).values
    return drawn[:, [(count - 1) // 2, count // 2]]
