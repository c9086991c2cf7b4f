"""Clocks for work that is enqueued: they mark points in time, and are read once it is done."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Clock(Protocol):
    """Marks points in time on a device; differences are read after the work is done."""

    def mark(self) -> None: ...

    def milliseconds(self) -> list[float]: ...


class HostClock:
    def __init__(self) -> None:
        self.points: list[float] = []

    def mark(self) -> None:
        self.points.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self.points, self.points[1:], strict=False)]


class DeviceClock:
    def __init__(self) -> None:
        self.points: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.points.append(event)

    def milliseconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in zip(self.points, self.points[1:], strict=False)]
