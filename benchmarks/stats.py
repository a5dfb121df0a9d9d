"""Statistics of samples: the spread of one side, the ratio of two that were taken in turn, and how sure it is."""

from __future__ import annotations

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


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times as long the other side takes: the median over pairs of samples that were taken together."""
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


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


def bootstrap(values: list[float], draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % interval of the median: of medians of as many values, drawn with replacement. The same every time."""
    count = len(values)
    if count < 2:
        return values[0], values[0]
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
    ordered = torch.tensor(values, dtype=torch.float64)[drawn].sort(1).values
    medians = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]).div(2).sort().values
    return medians[int(0.025 * draws)].item(), medians[int(0.975 * draws) - 1].item()
