"""Compare variants of one computation by time: interleaved rounds, medians, and ratios paired by round.

Variants that are timed one after another see different clocks, caches and neighbours. Here every round runs
each variant once, forwards and backwards in turn, and a ratio compares two calls of the same round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# Before a round whose first call takes less, one is made that is not timed.
_SHORT_S = 0.1
# Python 3.12 starts with some hundred objects that no collection looks at.
_FROZEN_BY_PYTHON = 1000


@dataclass(frozen=True)
class Timing:
    """Times of one variant.

    Attributes:
        first_call_s: seconds of the very first call, compilation included.
        seconds: seconds of each round, in the order of the rounds.
    """

    first_call_s: float
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def compile_s(self) -> float:
        """What the first call took beyond the median, in seconds; at least 0."""
        return max(0.0, self.first_call_s - self.median_s)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median; 0 with fewer than two rounds."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median_s

    def speedup_over(self, baseline: Timing) -> float:
        """Median over the rounds of ``baseline``'s time over this one's; above 1 this variant is faster."""
        return statistics.median(
            theirs / own for own, theirs in zip(self.seconds, baseline.seconds, strict=True)
        )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% confidence interval of the median of what `values` are independent draws of.

    It lies between two of the sorted values, whatever their distribution: how many of n draws are below the
    median is binomial (n, 1/2). Of fewer than six values it is their range, which is less certain than 95%.
    """
    ordered, count = sorted(values), len(values)
    # Of either end: how many are left out, and how likely the median is among them.
    outside, below = 0, 0.5**count
    while (more := below + math.comb(count, outside + 1) / 2**count) <= 0.025:
        outside, below = outside + 1, more
    return ordered[outside], ordered[count - 1 - outside]


def interleave(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    on_call: Callable[[str], object] | None = None,
    until: float = math.inf,
) -> dict[str, Timing]:
    """Time every variant in one process.

    Each variant is called once (its first call compiles), ``warmup`` times more, then once in every round. A
    round of short calls begins with one that is not timed: the first pays for cold caches and clocks.

    Args:
        variants: name -> a call of the whole computation.
        rounds: number of timed rounds, at least 1.
        device: work queued on a CUDA device is waited for before the clock is read.
        warmup: untimed calls of each variant after its first.
        on_call: told the variant's name after each call that `calls` counts, for progress.
        until: on the clock `time.monotonic`; no round but the first begins later.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    tell = on_call or (lambda name: None)
    first: dict[str, float] = {}
    latest: dict[str, float] = {}
    for name, call in variants.items():
        first[name] = latest[name] = timed(call, device)
        tell(name)
        for _ in range(warmup):
            latest[name] = timed(call, device)
            tell(name)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with settled_heap():
        for names in _rounds(list(variants), rounds, until):
            if latest[names[0]] < _SHORT_S:
                timed(variants[names[0]], device)
            for name in names:
                latest[name] = timed(variants[name], device)
                seconds[name].append(latest[name])
                tell(name)
    return {name: Timing(first[name], tuple(seconds[name])) for name in variants}


def calls(variants: int, rounds: int, warmup: int = 1) -> int:
    """Return how often `interleave` calls ``on_call``; calls that begin a round untimed are not told."""
    return variants * (1 + warmup + rounds)


def synchronize(device: torch.device | str) -> None:
    """Wait for the work queued on ``device``; nothing to do on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def settled_heap() -> Iterator[None]:
    """Keep what lives by now out of collections in the block: dozens of compiled models take one seconds."""
    gc.collect()
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:  # somebody else's: thawing is all or nothing
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rounds(names: list[str], rounds: int, until: float) -> Iterator[list[str]]:
    for index in range(rounds):
        if index and time.monotonic() > until:
            return
        gc.collect()  # between rounds, so that no variant pays for the garbage of another
        # There and back: each variant follows each neighbour equally often.
        yield names if index % 2 == 0 else names[::-1]


def timed(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of one call, the work that it queued on ``device`` included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
