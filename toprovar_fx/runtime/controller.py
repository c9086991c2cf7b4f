"""The controller of one compiled model in one generation: it reads the entropies and answers the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
from torch import Tensor

from ..analysis.cache_layout import CacheLayout
from ..criteria.restore import scatter_rows
from ..options import Options
from ..policies.layer_plan import LayerPlan
from .branching import Branching, begin_branching
from .budget import StepBudget
from .compaction import Compaction
from .deciders import Deciders
from .footing import Footing
from .foretelling import Foretelling
from .layer_memory import LayerMemory
from .layer_plans import LayerPlans
from .ledger import Ledger
from .maps import Block
from .outlook import Outlook
from .rations import Rations
from .short_caches import ShortCaches
from .silence import warn_if_idle

if TYPE_CHECKING:
    from ..schedules import Schedule
    from .generation import Generation


class Controller:
    """Decides for every layer and scale of one generation.

    Attributes:
        options: the settings.
        policy: what decides.
        ledger: what was run, for the report.
        branching: what is known on the device alone where graphs decide, or None.
        left: the maps and updates that layers left behind.
        caches: what the layers wrote, and how many rows each left out.
        foretelling: what a step may tell of the next one's decisions.
        footing: what the decisions about the scale follow from that is about to run.
    """

    def __init__(self, options: Options, generation: Generation) -> None:
        self.options, self._generation = options, generation
        schedule, ledger = generation.schedule, Ledger()
        self.ledger = ledger
        self._runs_before = 0  # of this scale
        self._deciders = Deciders.begin(options, schedule, generation.images, ledger)
        self.policy = self._deciders.policy
        self.left = LayerMemory(options, generation)
        self.branching: Branching | None = None
        self.caches = ShortCaches(generation.short_caches)
        self._compaction = Compaction(options, schedule, self.caches, ledger) if options.compacts else None
        deciding = self._deciders, self.caches.dropped, ledger
        self._rations = None if options.budget is None else Rations(options, generation, *deciding)
        self._outlook = Outlook(options, generation, self._deciders, self._rations, self.left)
        self._plans = LayerPlans(options, generation, self._deciders, self._outlook, self.left)
        self.footing = Footing(options, generation, self._deciders, self._plans, self.left, self.caches)
        decided = self._deciders, self._outlook, self._plans
        self.foretelling = Foretelling(options, generation, *decided, self.left)

    @property
    def scale(self) -> int:
        """The scale that runs."""
        return self._generation.scale

    @property
    def schedule(self) -> Schedule:
        """The scales."""
        return self._generation.schedule

    @property
    def images(self) -> int:
        """B."""
        return self._generation.images

    @property
    def layers(self) -> int:
        """Number of layers of the model; of its sublayers where the policy decides about these."""
        return self._deciders.layers

    # What a step asks and tells before it runs.

    def adopt(self, layers: int, parts: int = 1) -> None:
        """Learn the number of layers of the model, when its first scale step runs.

        Where each layer was cut in `parts`, every part counts as a layer of its own.
        """
        self.left.maps.adopt(layers)
        self._deciders.adopt(layers, parts)

    def enter(self) -> None:
        """Note that the current scale runs in a compiled graph."""
        self._generation.enter_compiled()

    def part_from(self, begin: int) -> range:
        """The layers from `begin` on whose K is known before any of them runs at this scale."""
        return self._outlook.part_from(begin)

    @property
    def ran(self) -> bool:
        """Whether a step ran since the scale began; what is known of a layer is that of one call."""
        return len(self.ledger.runs) > self._runs_before

    def branch(self, in_graphs: bool) -> None:
        """Learn, before a step runs, whether its layers decide themselves.

        Raises:
            GraphError: another step of this generation did, and this one cannot go on from there; or, with
                `strict`, the schedule does not let them.
        """
        if self.branching is not None and not in_graphs:
            self.branching.refuse_host(self.scale)
        elif self.branching is None and in_graphs and not self.ledger.runs:
            given = self.options, self._generation.schedule, self.images
            self.branching = begin_branching(*given, self._deciders, self.ledger)

    def ration(self, budget: StepBudget, sizes: Mapping[sympy.Symbol, int]) -> None:
        """Solve the budget for the scale that is about to run, once its step and sizes are known.

        Raises:
            OptionError: a budget that cannot be met.
        """
        if self._rations is not None:
            self._rations.solve(budget, sizes)

    # What the generation asks and tells.

    @property
    def depth(self) -> int | None:
        """D, or None as long as it is not known."""
        return self._deciders.depth.depth

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run at all."""
        return self.policy.exits(scale)

    def end_scale(self) -> None:
        """Close the scale that ran."""
        self._runs_before = len(self.ledger.runs)
        self._deciders.end_scale(self.scale)
        self.left.end_scale()
        if self._compaction is not None:
            self._compaction.end_scale(self.scale)
        self._plans.end_scale()

    def leave_out_unconditional(self) -> None:
        """Note that the scale that is about to run has the conditional rows alone, as all after it will."""
        if not self.ledger.conditional_scales:
            self.left.keep_rows(self.images)
            self._plans.forget_told()
            self.policy.keep_rows(self.images)
        self.ledger.conditional_scales.add(self.scale)

    def arrive(self) -> None:
        """Read D and R where they were measured and nobody has asked; graphs that decide keep theirs."""
        if self.branching is None:
            self._deciders.settle()

    def settle(self) -> None:
        """Read back, after the last scale, what is still on the device."""
        self._deciders.settle()
        if self.branching is not None:
            self.branching.settle()

    def warn_if_idle(self) -> None:
        """Say loudly that pruning was asked for and no graph could be pruned."""
        if self.options.rewrites and not self.ledger.prunable:
            warn_if_idle(self.ledger.reasons())

    def release(self) -> None:
        """Let go of keys and values: no graph of the generation runs any more."""
        self.caches.release()
        self._plans.end_scale()
        self._plans.forget_told()
        self.left.end_scale()
        if self._compaction is not None:
            self._compaction.release()

    # What the gates ask.

    def prunes(self, layer: int) -> bool:
        """Scale-depth gate: whether `layer` is past the depth, so that it may compute fewer tokens."""
        return self._outlook.prunes(layer)

    def ratio(self, layer: int) -> float | None:
        """The explicit keep ratio of `layer` at this scale, given or solved for, or None."""
        return self._outlook.ratio(layer)

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """Token gate: K and the keep set of `layer`, decided once per scale."""
        return self._plans.plan(layer, hidden)

    def count(self, layer: int, hidden: Tensor) -> int:
        """K of `layer` alone."""
        return self._plans.count(layer, hidden)

    def keep_sets(self, layers: Sequence[int], hidden: Tensor) -> dict[int, Tensor]:
        """The keep sets [R, K] of layers that compute some tokens at this scale."""
        keeps = {layer: self._plans.plan(layer, hidden).keep for layer in layers}
        return {layer: keep for layer, keep in keeps.items() if keep is not None}

    def taps(self, layer: int) -> bool:
        """Entropy tap: whether somebody needs the entropies of `layer` at this scale."""
        return self._outlook.taps(layer)

    # What the gates tell, and what they ask of what was told.

    def observe(self, layer: int, entropy: Tensor, keep: Tensor | None, length: int) -> None:
        """Take the entropies [R, L] (or [R, K] of the kept tokens) of `layer` at this scale."""
        if keep is not None:
            entropy = scatter_rows(self.left.ranking(layer), keep, entropy, length)
        self.observe_step({layer: entropy}, told=False)

    def observe_step(self, maps: Mapping[int, Tensor], told: bool, block: Block | None = None) -> None:
        """Take the entropies [R, L] that a step measured.

        Args:
            maps: by layer.
            told: whether it measured D and R as well.
            block: what they are parts of, or None.
        """
        scale = self.scale
        if block is None:
            self.left.maps.put(scale, maps)
        else:
            self.left.maps.put_together(block)
        self.ledger.maps.update({(scale, layer): entropy for layer, entropy in maps.items()})
        for layer, entropy in () if told else maps.items():
            self._deciders.observe(layer, scale, entropy)

    def observe_queries(
        self, layer: int, queries: Tensor, layout: CacheLayout, inputs: tuple[Any, ...], begin: int | None
    ) -> None:
        """Show the cache policy the queries [R, H, L or K, E] of a layer that has just run.

        `inputs` are those of its block, `begin` the first cache row of the scale as traced.
        """
        if self._compaction is not None and begin is not None:
            self._compaction.observe(layer, self.scale, queries, layout, inputs, begin)

    def offset(self, layer: int, start: int) -> int:
        """First cache row that `layer` writes: the graph's own start less the rows that pruning left out."""
        return start - self.caches.dropped.get(layer, 0)

    def finish(self, layer: int, before: Tensor, after: Tensor, rows_cached: int, *, whole: bool) -> None:
        """Account for a layer that ran: its cache rows, and its update if `whole` and needed later."""
        update = after - before if whole and self.needs_update(layer) else None
        self.account(layer, before.shape[1] - rows_cached, update)
        self._deciders.observe_layer(layer, self.scale, before, after)

    def finish_if(self, whole: Tensor, layer: int, before: Tensor, after: Tensor) -> None:
        """Account for a layer that decided itself: its update counts if `whole`, bool [], holds."""
        if self.needs_update(layer):
            self.left.updates.put_if(whole, layer, self.scale, after - before)

    def account(self, layer: int, missing: int, update: Tensor | None) -> None:
        """Account for the cache rows that a layer left out, and for its update [R, L, C] if needed later."""
        if missing:
            self.caches.drop(layer, missing)
        if update is not None:
            self.left.updates.put(self.scale, {layer: update})

    def account_step(
        self, missing: Mapping[int, int], updates: Mapping[int, Tensor], block: Block | None
    ) -> None:
        """As `account`, of all layers of a step; `block` is what the updates are parts of, or None."""
        for layer, rows in missing.items():
            self.caches.drop(layer, rows)
        if block is None:
            self.left.updates.put(self.scale, updates)
        else:
            self.left.updates.put_together(block)

    @property
    def reads_tokens(self) -> bool:
        """Whether the layer scope is measured on the tokens that the layers make at this scale."""
        return self._deciders.scope.wants_tokens(self.scale)

    def needs_update(self, layer: int) -> bool:
        """Whether the next scale may give the update of `layer` to tokens that it does not compute."""
        return self._outlook.needs_update(layer)
