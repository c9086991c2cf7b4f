"""The layer axis of one generation: the scope R of every layer (eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..criteria.scope import layer_detail
from ..ops.sigma_ratio import sigma_ratio
from ..options import Options
from ..readback import Reading, ReadingPart
from ..schedules import Schedule
from .ledger import Ledger
from .recorded_function import RecordedFunction


def scope_of_maps(maps: Tensor, centre: bool, beta: float) -> tuple[Tensor, Tensor]:
    """``sigma1 / sigma2`` [N, R] and R [N], float32, of the entropy maps [N, R, h, w] of N layers."""
    ratios = sigma_ratio(maps, centre)
    return ratios, layer_detail(ratios, beta).mean(1)


class ScopeTracker:
    """Measures R once, at the representative scale, or takes the values that are set.

    Args:
        options: the settings.
        schedule: the scales.
        ledger: takes R.

    Attributes:
        measure: `scope_of_maps`, recorded where the device can: it is many small kernels.
    """

    def __init__(self, options: Options, schedule: Schedule, ledger: Ledger) -> None:
        self.options, self._schedule, self._ledger = options, schedule, ledger
        self._scale = max(0, round(options.representative_scale * len(schedule)) - 1)
        self._online = options.prune_layers and options.layer_scope == "online"
        self._maps: dict[int, Tensor] = {}
        self._ratios: dict[int, Tensor] = {}
        self._arriving: tuple[Sequence[int], Reading | ReadingPart] | None = None
        self._known: tuple[tuple[int, ...], Tensor] | None = None
        self.measure = RecordedFunction(scope_of_maps, None)

    @property
    def measured_at(self) -> int:
        """The scale at which R is measured; 0 where it is not."""
        return self._scale if self._online else 0

    @property
    def mapped_at(self) -> int | None:
        """The scale at which R is read off the entropies of the layers, or None."""
        mapped = self.options.scope_of == "entropy_map" and self.options.keep is None
        return self._scale if self._online and mapped else None

    def wants_entropy(self, scale: int) -> bool:
        """Whether R needs the entropies of the layers at this scale."""
        return scale == self.mapped_at

    def observe(self, layer: int, scale: int, entropy: Tensor) -> None:
        """Take the entropies [R, L] of a layer."""
        if self.wants_entropy(scale):
            self._maps[layer] = entropy.unflatten(1, self._schedule.sides[scale])

    def wants_tokens(self, scale: int) -> bool:
        """Whether R needs the tokens that the layers make at this scale."""
        return self._online and scale == self._scale and self.options.scope_of == "tokens"

    def observe_tokens(self, layer: int, scale: int, tokens: Tensor) -> None:
        """Take the tokens [R, L, C] that a layer made."""
        if self.wants_tokens(scale):
            self._ratios[layer] = sigma_ratio(tokens, self.options.scope_centre)

    def hear(self, layers: Sequence[int], ratios: Tensor, detail: Tensor, arriving: ReadingPart) -> None:
        """Take ``sigma1 / sigma2`` [N, R] and R [N] of the scale that runs from who worked them out already.

        `arriving` is R on its way to the host.
        """
        self._take(tuple(layers), ratios, detail, arriving)
        self._maps = {}

    @property
    def measured(self) -> tuple[int, ...] | None:
        """The layers whose R was measured, once it was."""
        return None if self._known is None else self._known[0]

    @property
    def on_device(self) -> Tensor:
        """R of these layers, float32 [N]."""
        assert self._known is not None, "R was not measured"
        return self._known[1]

    def end_scale(self) -> None:
        """Turn what was seen into R, all layers at once; it is read when somebody asks for it."""
        options = self.options
        if self._maps:
            maps = {"maps": torch.stack(list(self._maps.values()))}
            ratios, detail = self.measure(maps, centre=options.scope_centre, beta=options.beta)
            self._take(tuple(self._maps), ratios, detail)
        elif self._ratios:
            ratios = torch.stack(list(self._ratios.values()))
            self._take(tuple(self._ratios), ratios, layer_detail(ratios, options.beta).mean(1))
        self._maps, self._ratios = {}, {}

    def _take(
        self, layers: tuple[int, ...], ratios: Tensor, detail: Tensor, arriving: ReadingPart | None = None
    ) -> None:
        self._ledger.scopes.append((layers, ratios))
        self._known = layers, detail
        self._keep(layers, detail, arriving)

    def _keep(self, layers: Sequence[int], detail: Tensor, arriving: ReadingPart | None) -> None:
        self._arriving = layers, arriving or Reading(detail)

    def settle(self) -> None:
        """Read, after the last scale, what nobody has asked for."""
        self._arrive()

    def _arrive(self) -> None:
        if self._arriving is not None:
            (layers, reading), self._arriving = self._arriving, None
            self._ledger.detail.update(zip(layers, reading.tolist(), strict=True))

    def detail(self, layer: int) -> float:
        """R of a layer; 1 where nothing is known."""
        options = self.options
        if not options.prune_layers or options.layer_scope == "off":
            return 1.0
        if options.scope_values is not None:
            return options.scope_values[layer % len(options.scope_values)]
        self._arrive()
        return self._ledger.detail.get(layer, 1.0)
