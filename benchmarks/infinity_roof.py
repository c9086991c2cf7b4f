"""What a device reaches at most, and so the time that a generation's scales need at least."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from toprovar_fx.cost.expressions import NOTHING
from toprovar_fx.runtime.report import GenerationReport

from .clocks import DeviceClock


@dataclass(frozen=True)
class Roof:
    """What a device reaches at most, measured: products of large matrices, and copies of large tensors."""

    flops_per_s: float
    bytes_per_s: float

    def floors_ms(self, report: GenerationReport) -> list[float]:
        """Per scale, the time of its FLOPs or of its `bytes_fused`, whichever is longer (docs/cost.md)."""
        costs = [report.costs.get(scale, NOTHING) for scale in range(len(report.schedule))]
        return [
            1e3 * max(cost.flops / self.flops_per_s, cost.bytes_fused / self.bytes_per_s) for cost in costs
        ]


def measure_roof(dtype: torch.dtype, size: int = 8192, copied_bytes: int = 2**32) -> Roof:
    """What the device reaches with square matrices of this size, and with copies of so much memory."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    product_ms = _median_ms(lambda: a @ b)
    source = torch.empty(copied_bytes, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_ms = _median_ms(lambda: target.copy_(source))
    return Roof(2 * size**3 / (1e-3 * product_ms), 2 * copied_bytes / (1e-3 * copy_ms))


def _median_ms(call: Callable[[], object]) -> float:
    clock = DeviceClock()
    for _ in range(12):
        clock.mark()
        call()
    clock.mark()
    return statistics.median(clock.milliseconds()[2:])
