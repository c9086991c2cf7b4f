"""Small numbers between host and device without more waiting than has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Reading:
    """Values on their way from a device to the host; only who asks for them waits.

    Args:
        values: any shape; nothing may write to it afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrival = values, None
        if values.device.type == "cuda":
            # Whatever the user's default device is.
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.current_stream(values.device).record_event()

    @property
    def arrived(self) -> bool:
        """Whether nobody who asks has to wait."""
        return self._arrival is None or self._arrival.query()

    def tolist(self) -> Any:
        """The values, as nested lists."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._values.tolist()

    def part(self, start: int, end: int) -> ReadingPart:
        """Some of the values of a vector, for somebody who asks for them alone."""
        return ReadingPart(self, start, end)


@dataclass(frozen=True)
class ReadingPart:
    """The values of `reading` from `start` up to `end`."""

    reading: Reading
    start: int
    end: int

    @property
    def arrived(self) -> bool:
        """As of the reading."""
        return self.reading.arrived

    def tolist(self) -> Any:
        """The values, as a list; waits for all of the reading."""
        return self.reading.tolist()[self.start : self.end]


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values of the host on a device; a copy from memory that is not pinned would wait for all before it."""
    host = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
