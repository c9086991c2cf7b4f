"""Wall time of consecutive stages, without stopping the device between them."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Measures stages by CUDA events, which cost no synchronisation, or by the clock on other devices."""

    def __init__(self, device: torch.device) -> None:
        """Start the first stage."""
        self._device = device
        self._names: list[str] = []
        self._marks = [self._mark()]

    def lap(self, name: str) -> None:
        """End the current stage under ``name`` and start the next."""
        self._names.append(name)
        self._marks.append(self._mark())

    def milliseconds(self) -> dict[str, float]:
        """Return the milliseconds of every stage and their ``total``; waits for the end of the last."""
        # Not for the whole device: that would break a graph that another thread records.
        for mark in self._marks:
            if not isinstance(mark, float):
                mark.synchronize()
        stages = zip(self._names, self._marks, self._marks[1:], strict=False)
        times = {name: self._between(before, after) for name, before, after in stages}
        return {**times, "total": sum(times.values())}

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter() * 1000
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @staticmethod
    def _between(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
        if isinstance(before, float) or isinstance(after, float):
            return float(after) - float(before)  # type: ignore[arg-type]
        return before.elapsed_time(after)
