"""Asks a recorded step for what decides about the layers that run after it, and hands it on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..criteria.saliency import scale_weight
from ..options import Options
from ..readback import Reading
from .deciders import Deciders
from .layer_memory import LayerMemory
from .layer_plans import LayerPlans
from .outlook import Outlook
from .telling import Coming, Scope, Telling

if TYPE_CHECKING:
    from .generation import Generation


class Foretelling:
    """Of the generations whose layers the host decides about, by entropies alone.

    Args:
        options: the settings.
        generation: the scale that runs.
        deciders: D and R.
        outlook: which layers the next scale may prune.
        plans: K of the layers.
        left: the maps that rank tokens, and what layers left for those that they do not compute.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        outlook: Outlook,
        plans: LayerPlans,
        left: LayerMemory,
    ) -> None:
        self._options, self._generation, self._deciders = options, generation, deciders
        self._outlook, self._plans, self._left = outlook, plans, left

    def telling(self, measured: Sequence[int], updated: Collection[int], end: int) -> Telling | None:
        """What a step of this scale can tell, or None for nothing.

        Args:
            measured: layers whose entropies the step tells, in order.
            updated: layers that leave an update.
            end: behind the last of its layers; others of this scale may follow.
        """
        options, scale = self._options, self._generation.scale
        if not measured or not options.by_entropies:
            return None
        depth, tracker = self._deciders.depth, self._deciders.scope
        rho = tuple(layer for layer in measured if depth.wants(layer, scale))
        side = self._generation.schedule.sides[scale]
        scope = None
        if tracker.wants_entropy(scale):
            scope = Scope(tuple(measured), side, options.scope_centre, options.beta)
        coming = None
        if options.sampling == "topk" and options.ranks_by_dense_layer and end < self._deciders.layers:
            coming = self._coming_here(measured, end)
        elif options.sampling == "topk" and options.ranks_from_before:
            coming = self._coming_next(measured, updated, scope)
        if not rho and scope is None and coming is None:
            return None
        return Telling(rho, scope, coming, self._generation.images, options.weighing)

    def _coming_here(self, measured: Sequence[int], begin: int) -> Coming | None:
        """Of the layers from `begin` on, which the last one that was measured ranks."""
        scale = self._generation.scale
        layers = self._outlook.pruning(self._outlook.part_from(begin))
        return self._weighed(layers, [measured[-1]] * len(layers), scale, self._deciders.scope.measured)

    def _coming_next(
        self, measured: Sequence[int], updated: Collection[int], scope: Scope | None
    ) -> Coming | None:
        """Of the layers of the next scale."""
        options, running = self._options, self._generation
        if running.scale + 1 >= len(running.schedule):
            return None
        layers = [layer for layer in range(self._deciders.layers) if self._outlook.may_prune_next(layer)]
        if options.restore == "cache":
            layers = [layer for layer in layers if layer in updated or layer in self._left.updates]
        ranked_by = [self._left.maps.ranked_by(layer, None) for layer in layers]
        if not set(ranked_by) <= set(measured):
            return None
        known = self._deciders.scope.measured if scope is None else scope.layers
        return self._weighed(layers, ranked_by, running.scale + 1, known)

    def _weighed(
        self, layers: Sequence[int], ranked_by: Sequence[int], scale: int, known: Sequence[int] | None
    ) -> Coming | None:
        """What is weighed for layers at a scale; None where their R are not among those of `known` layers."""
        options, running = self._options, self._generation
        if not layers:
            return None
        roles = None
        if options.prune_layers and options.layer_scope != "off":
            if options.scope_values is not None or known is None or not set(layers) <= set(known):
                return None
            roles = tuple(known.index(layer) for layer in layers)
        sides = running.schedule.sides[running.scale], running.schedule.sides[scale]
        weight = scale_weight(scale, len(running.schedule))
        return Coming(scale, tuple(layers), tuple(ranked_by), sides, weight, roles)

    @property
    def detail(self) -> Tensor | None:
        """The R that were measured, float32 [N] on the device, for a step that takes them; None before."""
        scope = self._deciders.scope
        return None if scope.measured is None else scope.on_device

    def hear(self, telling: Telling, told: Sequence[Tensor]) -> None:
        """Take what a step of this scale told, which nothing writes to afterwards."""
        reading = Reading(told[0])
        wanted = 0 if telling.coming is None else len(telling.coming.layers)
        measured = 0 if telling.scope is None else len(telling.scope.layers)
        end = told[0].numel() - wanted
        if telling.rho:
            self._deciders.depth.hear(reading.part(0, end - measured))
        if telling.scope is not None:
            detail = told[0][end - measured : end], reading.part(end - measured, end)
            self._deciders.scope.hear(telling.scope.layers, told[1], *detail)
        if telling.coming is not None:
            self._plans.hear(telling.coming.scale, telling.coming.layers, reading.part(end, end + wanted))
