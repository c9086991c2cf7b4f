"""D and R of a generation whose graphs decide: kept as tensors, read once after the last scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..options import Options
from ..readback import ReadingPart
from ..schedules import Schedule
from .depth import DepthTracker
from .ledger import Ledger
from .scope import ScopeTracker


class DepthOnDevice(DepthTracker):
    """As `DepthTracker`, but the host only knows where D *may* be reached: after its first scale.

    Entropies are measured as if D were never reached; what is seen after it changes nothing, because the
    extreme of rho has crossed the threshold already.
    """

    def __init__(self, options: Options, scales: int, images: int, ledger: Ledger) -> None:
        super().__init__(options, scales, images, ledger)
        self._best: Tensor | None = None
        self._by_layer: list[Tensor] = []
        self._seen: dict[int, Tensor] = {}

    @property
    def undecided(self) -> bool:
        """Whether D is found online: the host does not learn when."""
        return self._online

    def beyond(self, scale: int) -> bool:
        """Whether `scale` may lie past the depth."""
        return scale > self.first if self._online else super().beyond(scale)

    def observe(self, layer: int, scale: int, entropy: Tensor) -> None:
        """Take the entropies [R, L] of a layer; its ratio stands among the others' in the order of layers."""
        super().observe(layer, scale, entropy)
        if self._maps:
            self.observe_ratio(self._rho()[0][0])
            self._maps = []

    def observe_ratio(self, rho: Tensor) -> None:
        """Take rho of a layer as its graph computed it."""
        self._by_layer.append(rho)

    def end_scale(self, scale: int) -> None:
        """Join the ratios of the scale that ran."""
        if self._by_layer and self._online:
            rho = torch.stack(self._by_layer).mean(0)
            self._seen[scale] = rho
            extreme = torch.minimum if self.options.depth_compare == "le" else torch.maximum
            self._best = rho if self._best is None else extreme(self._best, rho)
        self._by_layer = []

    def best_rho(self, rows: int, device: torch.device) -> Tensor:
        """What is compared with tau, float32 [rows]: infinite where the host knows that D is reached."""
        if self._best is not None:
            return self._best
        reached = math.inf if self.options.depth_compare == "ge" else -math.inf
        return torch.full((rows,), -reached if self._online else reached, device=device)

    def settle(self) -> None:
        """Read rho back and find D as the host would have."""
        for scale, rho in self._seen.items():
            if self._depth is None:
                self._take(scale, rho.tolist())
        self._seen = {}


class ScopeOnDevice(ScopeTracker):
    """As `ScopeTracker`; R stays on the device."""

    def __init__(self, options: Options, schedule: Schedule, ledger: Ledger) -> None:
        super().__init__(options, schedule, ledger)
        self._measured: dict[int, Tensor] = {}

    def _keep(self, layers: Sequence[int], detail: Tensor, arriving: ReadingPart | None) -> None:
        self._measured.update(zip(layers, detail.double(), strict=True))

    def detail_on_device(self, layer: int, device: torch.device) -> Tensor:
        """R of a layer, float64 []."""
        found = self._measured.get(layer)
        return (
            torch.full((), self.detail(layer), dtype=torch.float64, device=device) if found is None else found
        )

    def settle(self) -> None:
        """Read R back for the report."""
        if self._measured:
            values = torch.stack(list(self._measured.values())).tolist()
            self._ledger.detail.update(zip(self._measured, values, strict=True))
        self._measured = {}
