"""The least time that a device can need for a cost: the roofline of Williams et al. (2009)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import OptionError
from .expressions import Cost


@dataclass(frozen=True)
class Roofline:
    """A device as two numbers.

    Attributes:
        flops_per_s: peak rate of its matrix units for the dtype in use, measured or from the data sheet.
        bytes_per_s: memory bandwidth.

    Raises:
        OptionError: a rate that is not a positive finite number.
    """

    flops_per_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        """Check the rates."""
        for name in ("flops_per_s", "bytes_per_s"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and rate > 0):
                raise OptionError(f"{name}={rate!r}: expected a positive number")

    def latency_ms(self, cost: Cost) -> float:
        """The larger of the time for the FLOPs and the time for the fused bytes, in milliseconds.

        No launch, no dispatch and no imbalance is in it: a run is slower, never faster.
        """
        return 1e3 * max(cost.flops / self.flops_per_s, cost.bytes_fused / self.bytes_per_s)
