"""How the layers stand that are about to run: all that the decisions about them follow from."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import Tensor

from ..options import Options
from .deciders import Deciders
from .layer_memory import LayerMemory
from .layer_plans import LayerPlans
from .short_caches import ShortCaches
from .statistics import Statistics

if TYPE_CHECKING:
    from .generation import Generation


class Ground:
    """What decisions follow from besides what is measured; its hash is known before the host waits.

    Args:
        values: hashable each.
    """

    __slots__ = ("_hash", "values")

    def __init__(self, *values: Hashable) -> None:
        self.values, self._hash = values, hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ground) and self.values == other.values


class Footing:
    """Of the generations whose layers the host decides about.

    Args:
        options: the settings.
        generation: the scale that runs.
        deciders: the policy, D and R.
        plans: K of the layers.
        left: maps and updates that the layers left.
        caches: how many rows each layer left out.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        plans: LayerPlans,
        left: LayerMemory,
        caches: ShortCaches,
    ) -> None:
        self._options, self._generation = options, generation
        self._deciders, self._plans, self._left, self._caches = deciders, plans, left, caches

    def measure_with(self, statistics: Statistics) -> None:
        """Let what decides be computed by recordings."""
        self._deciders.measure_with(statistics)
        self._plans.weigh = statistics.weigh

    @property
    def waits(self) -> bool:
        """Whether `standing` has to wait for what a step told."""
        return self._deciders.depth.waits or self._plans.waits

    def ground(self, sizes: Hashable) -> Ground:
        """What decisions follow from that no device has to be asked for.

        Args:
            sizes: of the step that is about to run.
        """
        self._plans.look_ahead()
        running, deciders, memory = self._generation, self._deciders, self._left
        known = running.scale, running.schedule, running.images, deciders.layers, deciders.scope.measured
        left = memory.maps.layers, memory.updates.layers, tuple(self._caches.dropped.items())
        return Ground(self._options, sizes, *known, *left)

    def standing(self, part: range, hidden: Tensor) -> Hashable | None:
        """What decisions about some layers follow from besides the ground; None where more decides than that.

        Where K is measured, its layers are planned now, and the host waits for the device.

        Args:
            part: the layers; they run after all before them.
            hidden: a tensor of the shape and device of the hidden state.
        """
        counts: Hashable | None = ()
        if not self._options.foreseen:
            if not self._options.by_entropies:
                return None
            # Scales that nothing can prune yet follow from D alone.
            counts = self._plans.counts(part, hidden) if self._prunes else ()
        return None if counts is None else (self._deciders.depth.depth, counts)

    @property
    def _prunes(self) -> bool:
        return self._deciders.policy.prunes(self._generation.scale)
