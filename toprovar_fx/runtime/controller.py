"""The controller of one compiled model in one generation: it reads the entropies and answers the gates.

Causality decides what it may use: rho_s exists only after scale s has run, a layer's entropies only after
that layer's attention. So depth is decided for the scales after the one it was read at, and a pruned layer is
ranked by a map that is already there (`entropy_source`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import sympy
from torch import Tensor

from ..analysis.cache_layout import CacheLayout
from ..criteria.restore import scatter_rows
from ..criteria.score_registry import ScoreContext
from ..errors import GraphError
from ..options import Options
from .branching import Branching, begin_branching
from .budget import StepBudget
from .compaction import Compaction
from .depth import DepthTracker
from .generation import Generation
from .graph_updates import GraphUpdates
from .layer_plan import LayerPlan, LayerQuestion
from .ledger import Ledger
from .ranking import Ranking
from .rations import Rations
from .scope import ScopeTracker
from .short_caches import ShortCaches
from .silence import warn_if_idle
from .taps import ranks_others


class Controller:
    """Decides for every layer and scale of one generation.

    Attributes:
        options: the settings.
        layers: number of layers of the model; of its sublayers where the policy decides about these.
        policy: what decides.
        ledger: what was run, for the report.
        branching: what is known on the device alone where graphs decide, or None.
        caches: what the layers wrote, and how many rows each left out.
    """

    def __init__(self, options: Options, generation: Generation) -> None:
        self.options, self.layers = options, 0
        self.ledger = Ledger()
        self._generation = generation
        schedule = generation.schedule
        self._scales = len(schedule)
        self._depth = DepthTracker(options, self._scales, generation.images, self.ledger)
        self.policy = options.deciding(options, schedule, generation.images, self._depth)
        self._scope = ScopeTracker(options, schedule, self.ledger)
        self._ranking = Ranking(options, schedule)
        self._updates = GraphUpdates(schedule)
        self.branching: Branching | None = None
        self.caches = ShortCaches(generation.short_caches)
        self._compaction = (
            Compaction(options, schedule, self.caches, self.ledger) if options.compacts else None
        )
        self._plans: dict[int, LayerPlan] = {}
        self._rations: Rations | None = None
        if options.budget is not None:
            deciding = self.policy, self._depth, self._scope
            self._rations = Rations(options, generation, *deciding, self.caches.dropped, self.ledger)

    @property
    def scale(self) -> int:
        """The scale that runs."""
        return self._generation.scale

    @property
    def images(self) -> int:
        """B."""
        return self._generation.images

    # What a step asks and tells before it runs.

    def adopt(self, layers: int, parts: int = 1) -> None:
        """Learn the number of layers of the model, when its first scale step runs.

        Where each layer was cut in `parts`, every part counts as a layer of its own.
        """
        self.layers = layers
        self._depth.adopt(layers)
        self._ranking.adopt(layers)
        if self._rations is not None:
            self._rations.adopt(layers)
        self.policy.adopt(layers, parts)

    def enter(self) -> None:
        """Note that the current scale runs in a compiled graph."""
        self._generation.enter_compiled()

    def branch(self, in_graphs: bool) -> None:
        """Learn, before a step runs, whether its layers decide themselves.

        Raises:
            GraphError: another step of this generation did, and this one cannot go on from there; or, with
                `strict`, the schedule does not let them.
        """
        if self.branching is not None and not in_graphs:
            raise GraphError(
                f"scale {self.scale} runs in another graph than the scales before, whose layers decided "
                "themselves: expected one graph for all of them; nearest valid: gate='host'"
            )
        if not in_graphs or self.branching is not None or self.ledger.runs:
            return
        given = self.options, self._generation.schedule, self.images, self.layers
        self.branching = begin_branching(*given, self._scope.measured_at, self.ledger)
        if self.branching is not None:
            self._depth, self._scope = self.branching.depth, self.branching.scope
            self.policy.depth = self.branching.depth

    def ration(self, budget: StepBudget, sizes: Mapping[sympy.Symbol, int]) -> None:
        """Solve the budget for the scale that is about to run, once its step and sizes are known.

        Raises:
            OptionError: a budget that cannot be met.
        """
        if self._rations is not None:
            self._rations.solve(budget, sizes)

    def standing(self) -> Hashable | None:
        """What all decisions about the scale that is about to run follow from; None where more decides."""
        if not self.options.foreseen:
            return None
        left = self._ranking.layers, self._updates.layers, tuple(self.caches.dropped.items())
        return self.scale, self._generation.schedule, self.images, self.layers, left

    # What the generation asks and tells.

    @property
    def depth(self) -> int | None:
        """D, or None as long as it is not known."""
        return self._depth.depth

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run at all."""
        return self.policy.exits(scale)

    def end_scale(self) -> None:
        """Close the scale that ran."""
        self._depth.end_scale(self.scale)
        self._scope.end_scale()
        self._ranking.end_scale()
        self._updates.end_scale()
        if self._compaction is not None:
            self._compaction.end_scale(self.scale)
        self._plans = {}

    def leave_out_unconditional(self) -> None:
        """Note that the scale that is about to run has the conditional rows alone, as all after it will."""
        if not self.ledger.conditional_scales:
            self._ranking.keep_rows(self.images)
            self._updates.keep_rows(self.images)
            self.policy.keep_rows(self.images)
        self.ledger.conditional_scales.add(self.scale)

    def settle(self) -> None:
        """Read back, after the last scale, what the layers decided themselves."""
        if self.branching is not None:
            self.branching.settle()

    def warn_if_idle(self) -> None:
        """Say loudly that pruning was asked for and no graph could be pruned."""
        if self.options.rewrites and not self.ledger.prunable:
            warn_if_idle(self.ledger.reasons())

    def release(self) -> None:
        """Let go of keys and values: no graph of the generation runs any more."""
        self.caches.release()
        if self._compaction is not None:
            self._compaction.release()

    # What the gates ask.

    def prunes(self, layer: int) -> bool:
        """Scale-depth gate: whether `layer` is past the depth, so that it may compute fewer tokens."""
        if not self.policy.is_open(layer):
            return False
        ratio = self.ratio(layer)
        wanted = self.policy.prunes(self.scale) if ratio is None else ratio < 1
        return wanted and (self.options.restore != "cache" or layer in self._updates)

    def ratio(self, layer: int) -> float | None:
        """The explicit keep ratio of `layer` at this scale, given or solved for, or None."""
        if self._rations is not None:
            return self._rations.ratio(layer)
        return self.policy.keep_ratio(self.scale, layer)

    def _may_be_explicit(self, scale: int, layer: int) -> bool:
        """Whether a keep ratio below 1 is given, or may be solved for, at another scale."""
        if self._rations is not None:
            return self._rations.allows(scale, layer)
        ratio = self.policy.keep_ratio(scale, layer)
        return ratio is not None and ratio < 1

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """Token gate: K and the keep set of `layer`, decided once per scale."""
        if layer not in self._plans:
            place = ScoreContext(
                layer=layer,
                layers=self.layers,
                scale=self.scale,
                scales=self._scales,
                side=self._generation.schedule.sides[self.scale],
                images=self.images,
                seed=self.options.seed,
            )
            question = LayerQuestion(
                place=place,
                hidden=hidden,
                detail=self._scope.detail(layer),
                entropy=self.ranking(layer),
                ratio=self.ratio(layer),
            )
            self._plans[layer] = self.policy.plan(question)
        return self._plans[layer]

    def ranking(self, layer: int) -> Tensor | None:
        """The entropy map [R, L] of the current scale that ranks the tokens of `layer`."""
        return self._ranking.map_for(layer, self.scale)

    def ranked_by(self, layer: int, latest: int | None) -> int:
        """The layer whose map ranks the tokens of `layer`; `latest` was the last measured at this scale."""
        return self._ranking.ranked_by(layer, latest)

    def knows_map(self, layer: int) -> bool:
        """Whether `layer` left an entropy map at this scale or an earlier one."""
        return layer in self._ranking

    def map_of(self, layer: int) -> Tensor | None:
        """The latest entropy map of `layer` at the tokens of this scale, [R, L], or None."""
        return self._ranking.map_of(layer, self.scale)

    def taps(self, layer: int) -> bool:
        """Entropy tap: whether somebody needs the entropies of `layer` at this scale."""
        if not self.options.prunes or self.scale < 1:
            return False
        if self._depth.wants(layer, self.scale) or self._scope.wants_entropy(self.scale):
            return True
        return ranks_others(self.options, layer, self.layers, self.prunes, self._may_prune_next)

    def _may_prune_next(self, layer: int) -> bool:
        """Whether `layer` may be pruned at the next scale, as far as this scale can know."""
        coming = self.scale + 1
        if coming >= self._scales or self._depth.exits_for_certain(coming) or not self.policy.is_open(layer):
            return False
        if self.options.explicit:
            return self._may_be_explicit(coming, layer)
        return self.policy.may_prune(coming, self.scale)

    # What the gates tell, and what they ask of what was told.

    def observe(self, layer: int, entropy: Tensor, keep: Tensor | None, length: int) -> None:
        """Take the entropies [R, L] (or [R, K] of the kept tokens) of `layer` at this scale."""
        if keep is not None:
            entropy = scatter_rows(self.ranking(layer), keep, entropy, length)
        self._ranking.put(layer, self.scale, entropy)
        self.ledger.maps[self.scale, layer] = entropy
        self._depth.observe(layer, self.scale, entropy)
        self._scope.observe(layer, self.scale, entropy)

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
        self._scope.observe_tokens(layer, self.scale, after)
        self.policy.observe_layer(self.scale, layer, before, after)

    def finish_if(self, whole: Tensor, layer: int, before: Tensor, after: Tensor) -> None:
        """Account for a layer that decided itself: its update counts if `whole`, bool [], holds."""
        if self.needs_update(layer):
            self._updates.put_if(whole, layer, self.scale, after - before)

    def account(self, layer: int, missing: int, update: Tensor | None) -> None:
        """Account for the cache rows that a layer left out, and for its update [R, L, C] if needed later."""
        if missing:
            self.caches.drop(layer, missing)
        if update is not None:
            self._updates.put(layer, self.scale, update)

    @property
    def reads_tokens(self) -> bool:
        """Whether the layer scope is measured on the tokens that the layers make at this scale."""
        return self._scope.wants_tokens(self.scale)

    def needs_update(self, layer: int) -> bool:
        """Whether the next scale may give the update of `layer` to tokens that it does not compute."""
        options = self.options
        shrinks = options.explicit or options.prune_tokens or options.layer_skip_below > 0
        wanted = options.prunes and shrinks and options.restore == "cache"
        return wanted and self._may_prune_next(layer)

    def restored(self, layer: int) -> Tensor | None:
        """The update [R, L, C] that pruned tokens of `layer` get, or None for nothing."""
        if self.options.restore != "cache" or layer not in self._updates:
            return None
        return self._updates.at(layer, self.scale)
