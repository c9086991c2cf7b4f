"""Compare variants of one computation by time: interleaved rounds, medians, and ratios paired by round.

Variants that are timed one after another see different clocks, caches and neighbours. Here every round runs
each variant once, forwards and backwards in turn, and a ratio compares two calls of the same round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


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

    Each variant is called once (its first call compiles), ``warmup`` times more, then once in every round.

    Args:
        variants: name -> a call of the whole computation.
        rounds: number of timed rounds, at least 1.
        device: work queued on a CUDA device is waited for before the clock is read.
        warmup: untimed calls of each variant after its first.
        on_call: told the variant's name after each call, for progress.
        until: on the clock `time.monotonic`; no round but the first begins later.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    tell = on_call or (lambda name: None)
    first = {}
    for name, call in variants.items():
        first[name] = timed(call, device)
        tell(name)
        for _ in range(warmup):
            call()
            tell(name)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with _settled_heap():
        for name in _rounds(list(variants), rounds, until):
            seconds[name].append(timed(variants[name], device))
            tell(name)
    return {name: Timing(first[name], tuple(seconds[name])) for name in variants}


def calls(variants: int, rounds: int, warmup: int = 1) -> int:
    """Return how often `interleave` calls ``on_call``."""
    return variants * (1 + warmup + rounds)


def synchronize(device: torch.device | str) -> None:
    """Wait for the work queued on ``device``; nothing to do on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Keep what lives by now out of collections in the block: dozens of compiled models take one seconds."""
    gc.collect()
    if gc.get_freeze_count():  # somebody else's: thawing is all or nothing
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rounds(names: list[str], rounds: int, until: float) -> Iterator[str]:
    for index in range(rounds):
        if index and time.monotonic() > until:
            return
        gc.collect()  # between rounds, so that no variant pays for the garbage of another
        # There and back: each variant follows each neighbour equally often.
        yield from names if index % 2 == 0 else reversed(names)


def timed(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of one call, the work that it queued on ``device`` included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
