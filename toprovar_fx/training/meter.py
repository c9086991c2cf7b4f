"""Progress line on stderr: numbers gather on the device and are read only when a line is due."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from .clock import Clock


class Meter:
    """Averages of named tensors between two printed lines.

    Args:
        clock: source of the elapsed time shown.
        every: seconds between lines.
    """

    def __init__(self, clock: Clock, every: float = 5.0) -> None:
        self.clock = clock
        self.every = every
        self.images = 0
        self.last: dict[str, list[float]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._since = time.monotonic()

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add one step's detached values (scalars or vectors on the device); does not wait for the device."""
        self.images += images
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    @property
    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self._since >= self.every

    def line(self, head: str) -> None:
        """Read the averages, print them to stderr and start anew."""
        self.last = {
            name: (total / self._counts[name]).reshape(-1).tolist() for name, total in self._sums.items()
        }
        seconds = max(time.monotonic() - self._since, 1e-9)
        parts = [
            f"{self.clock.elapsed:6.0f}s/{self.clock.seconds:.0f}s",
            head,
            f"{self.images / seconds:.0f} images/s",
        ]
        for name, numbers in self.last.items():
            shown = " ".join(f"{number:.3f}" if len(numbers) == 1 else f"{number:.2f}" for number in numbers)
            parts.append(f"{name} {shown}")
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        print("  ".join(parts), file=sys.stderr, flush=True)
        self.images = 0
        self._sums.clear()
        self._counts.clear()
        self._since = time.monotonic()
