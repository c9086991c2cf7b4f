"""Wall-clock budget of a run, its stop signal and the learning rate that follows it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Clock:
    """Counts training seconds against a budget that may span several processes.

    Args:
        seconds: budget of the whole run; schedules run over it.
        session_seconds: limit of this process from now on, whatever it does; None means none.
        elapsed: seconds already spent by earlier processes of the run.
    """

    def __init__(self, seconds: float, session_seconds: float | None = None, elapsed: float = 0.0) -> None:
        self.seconds = seconds
        self.stop_requested = False
        self._elapsed = elapsed
        self._started: float | None = None
        self._deadline = math.inf if session_seconds is None else time.monotonic() + session_seconds

    def start(self) -> None:
        """Begin (or go on) counting."""
        if self._started is None:
            self._started = time.monotonic()

    def pause(self) -> None:
        """Stop counting, for instance while something compiles."""
        self._elapsed = self.elapsed
        self._started = None

    @property
    def elapsed(self) -> float:
        """Training seconds so far, over all processes of the run."""
        return self._elapsed + (time.monotonic() - self._started if self._started is not None else 0.0)

    @property
    def fraction(self) -> float:
        """Share of the budget spent, at most 1."""
        return min(1.0, self.elapsed / self.seconds)

    @property
    def complete(self) -> bool:
        """Whether the budget of the run is spent."""
        return self.elapsed >= self.seconds

    @property
    def over(self) -> bool:
        """Whether this process should stop now."""
        return self.complete or self.stop_requested or time.monotonic() >= self._deadline


@contextmanager
def stop_on_signal(clock: Clock) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the loop in order, so that state is saved; then restore the handlers."""

    def request(number: int, frame: FrameType | None) -> None:
        clock.stop_requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate(
    fraction: float, peak: float, *, warmup: float = 0.02, decay: float = 0.0, floor: float = 0.03
) -> float:
    """Learning rate at a fraction of the budget: linear warm-up, constant, then a cosine to the floor.

    Args:
        fraction: share of the budget spent, 0 to 1.
        peak: highest rate.
        warmup: fraction of linear warm-up.
        decay: fraction at which the cosine starts; a value up to `warmup` gives the plain cosine schedule.
        floor: last rate as a share of the peak.
    """
    if fraction < warmup:
        return peak * max(fraction, 0.01 * warmup) / warmup
    start = max(decay, warmup)
    if fraction <= start:
        return peak
    progress = (min(fraction, 1.0) - start) / (1.0 - start)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
