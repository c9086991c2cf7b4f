"""Runs a scale step, or a part of one, as one call: decide, call, account."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor

from ..analysis.graph_sizes import spec_of
from ..analysis.repeatable import obstacle_to_repeating
from ..analysis.shapes import size_of
from ..lowering.joined_layers import JoinedLayer, Selection
from ..lowering.joined_step import join_step
from ..lowering.linked_step import link_step
from ..lowering.region import Region
from ..lowering.rest import RegionModule
from ..lowering.token_scores import frequency_graph
from ..options import Options
from .controller import Controller
from .cuda_graphs import GraphMemory
from .failures import on_failure
from .statistics import Statistics
from .step_account import Places, prepare, write
from .step_check import pruned_graphs_hold
from .step_decision import LayerDecision, SiteArms, Undecided, decide, read_site
from .step_plan import Group, Pattern, Plans, StepPlan
from .step_run import StepRuns
from .telling import Telling

if TYPE_CHECKING:
    from ..passes.step import Step

# (sizes of the trace, further sizes by symbol name) -> what code generation is tuned for, by symbol name.
Hints = Callable[[Mapping[sympy.Symbol, int], Mapping[str, int]], dict[str, int]]


@dataclass(frozen=True)
class _Numbers:
    """A scale's hidden state [R, L, C] without its values, and every layer's first cache row in the trace."""

    hidden: Tensor
    starts: Mapping[int, int | None]


class WholeStep:
    """The joined graphs of one rewritten step, made as decisions ask for them.

    Args:
        step: the step after the passes.
        options: settings.
        lowering: "eager" or "inductor".
        hints: largest sizes that a generation asks of a joined graph.
        memory: of what is recorded, shared with other parts of the step; None where nothing is.
    """

    def __init__(
        self, step: Step, options: Options, lowering: str, hints: Hints, memory: GraphMemory | None
    ) -> None:
        self._step, self._options, self._lowering, self._hints = step, options, lowering, hints
        nodes = step.graph.graph.nodes
        self._calls = {str(node.target): node for node in nodes if node.op == "call_module"}
        self._rest = [child for child in step.graph.children() if isinstance(child, RegionModule)]
        self._patterns: dict[tuple[JoinedLayer, ...], Pattern] = {}
        self._plans = Plans()
        self._sites: list[SiteArms] = []
        self._frequency: Region | None = None
        self._refusal: Undecided | None = None
        self._hidden = spec_of(self._calls[step.sites[0].name].args[0])  # type: ignore[arg-type]
        try:
            self._sites = [read_site(site.layer, step.module(site)) for site in step.sites]
        except Undecided as verdict:
            self._refusal = verdict
        self._layers = range(step.sites[0].layer, step.sites[-1].layer + 1)
        self._memory = memory
        self._statistics = Statistics.recorded(memory)
        self._runs = StepRuns(memory)
        names = {site.layer: site.name for site in step.sites}
        self._starts = {arms.layer: self._start(names[arms.layer], arms) for arms in self._sites}
        self._known: dict[tuple[tuple[sympy.Symbol, int], ...], _Numbers] = {}

    @property
    def regions(self) -> list[Region]:
        """Every joined graph that was compiled or is about to be, and what scores tokens between blocks."""
        joined = [pattern.region for pattern in self._patterns.values() if pattern.call is pattern.region]
        return joined if self._frequency is None else [*joined, self._frequency]

    @property
    def refuses(self) -> bool:
        """Whether its blocks have to run one by one at every scale."""
        return self._refusal is not None

    def _start(self, name: str, arms: SiteArms) -> sympy.Expr | None:
        """First cache row that the traced model writes in a layer, in the symbols of the trace."""
        at = None if arms.dense is None else arms.dense.start
        if at is None or isinstance(at, tuple):
            return None if at is None else sympy.Integer(at[0])
        return size_of(self._calls[name].args[at])

    def run(
        self, controller: Controller, arguments: tuple[Any, ...], sizes: dict[sympy.Symbol, int]
    ) -> tuple[Any, ...] | None:
        """Run its layers as one graph.

        Args:
            controller: of the generation.
            arguments: of the step.
            sizes: values of the trace's size symbols.

        Returns:
            Its results; None, with a note in the ledger, where its blocks have to run one by one.
        """
        controller.footing.measure_with(self._statistics)
        if self._refusal is not None:
            controller.ledger.note(controller.scale, self._refusal.fallback)
            return None
        hidden = self._numbers(sizes).hidden
        ground = controller.footing.ground(tuple(sizes.items()))
        staged = self._runs.stage(arguments, controller) if controller.footing.waits else None
        standing = controller.footing.standing(self._layers, hidden)
        key = None if standing is None else (ground, standing)
        plan = self._plans.find(key)
        try:
            if plan is None:
                plan = self._plan(controller, hidden, sizes)
                self._plans.keep(key, plan)
            if not pruned_graphs_hold(self._step, controller, plan, arguments, hidden):
                return None
        except Undecided as verdict:
            controller.ledger.note(controller.scale, verdict.fallback)
            return None
        ran = self._runs(plan, controller, arguments, hidden, staged)
        joined = plan.pattern.joined
        for rest in self._rest:
            controller.ledger.ran_outside(controller.scale, rest.region, rest.region.sizes_from(sizes))
        left = ran.leavings(joined)
        write(plan.account, controller, ran.chosen, left, told=bool(ran.told))
        if plan.telling is not None and ran.told:
            controller.foretelling.hear(plan.telling, ran.told)
        return tuple(ran.values[: joined.results])

    def _plan(self, controller: Controller, hidden: Tensor, sizes: dict[sympy.Symbol, int]) -> StepPlan:
        """Decide the layers.

        Raises:
            Undecided: its blocks have to run one by one.
        """
        decisions = decide(self._sites, controller, hidden)
        starts = self._numbers(sizes).starts
        groups = [self._group(controller, one, starts[one.site.layer]) for one in decisions]
        distinct = list(dict.fromkeys(groups))
        pattern = self._join(decisions, groups, distinct, sizes)
        places = [group.place for group in groups]
        account = prepare(controller, decisions, places, sizes, hidden.shape[1])
        chosen = tuple(one.site.layer for one in decisions if one.chosen)
        keeps = controller.keep_sets(chosen, hidden) if self._options.scoring.by_place else None
        # Without a recording it would be launched kernel by kernel, for a scale that may never ask.
        telling = None if self._memory is None else self._telling(controller, decisions)
        return StepPlan(decisions, distinct, pattern, account, telling, chosen, keeps)

    def _telling(self, controller: Controller, decisions: Sequence[LayerDecision]) -> Telling | None:
        measured = [one.site.layer for one in decisions if one.measures]
        updated = {one.site.layer for one in decisions if one.update}
        return controller.foretelling.telling(measured, updated, self._layers.stop)

    def _numbers(self, sizes: Mapping[sympy.Symbol, int]) -> _Numbers:
        """What the symbols of the trace stand for at these sizes."""
        key = tuple(sizes.items())
        if key not in self._known:
            values = {symbol: sympy.Integer(value) for symbol, value in sizes.items()}
            starts = {
                layer: None if start is None else int(start.xreplace(values))
                for layer, start in self._starts.items()
            }
            assert self._hidden.shape is not None
            shape = tuple(int(size.xreplace(values)) for size in self._hidden.shape)
            one = torch.empty((), dtype=self._hidden.dtype, device=self._hidden.device)
            self._known[key] = _Numbers(one.expand(shape), starts)
        return self._known[key]

    @staticmethod
    def _group(controller: Controller, one: LayerDecision, start: int | None) -> Group:
        count = one.count if one.arm == "pruned" else None
        offset = None if start is None else controller.offset(one.site.layer, start)
        return Group(count, Places(start, offset))

    def _join(
        self,
        decisions: Sequence[LayerDecision],
        groups: Sequence[Group],
        distinct: Sequence[Group],
        sizes: Mapping[sympy.Symbol, int],
    ) -> Pattern:
        own = (
            _joined_layer(one, distinct.index(group)) for one, group in zip(decisions, groups, strict=True)
        )
        layers = (*(JoinedLayer() for _ in range(self._layers.start)), *own)
        if layers not in self._patterns:
            sites = {site.name: site.layer for site in self._step.sites}
            keep_low = self._options.scoring.keeps_low(self._options.keep_low)
            frequency = self._scores(sizes) if any(layer.by_frequency for layer in layers) else None
            selection = Selection(self._options.cfg_rows, keep_low, frequency)
            given = self._step.graph, sites, layers, selection
            joined = join_step(*given)
            more = {f"K{at}": group.count for at, group in enumerate(distinct) if group.count is not None}
            variants = sorted({one.arm for one in decisions})
            region = Region(
                joined.graph,
                self._lowering,
                self._hints(sizes, more),
                f"whole step: {', '.join(variants)}",
                static=self._options.step_sizes == "static",
                on_failure=on_failure(self._options),
            )
            fused = self._options.step_code == "fused"
            call = region if fused else link_step(*given)
            obstacle = obstacle_to_repeating(joined.graph.graph)
            self._patterns[layers] = Pattern(joined, region, call, obstacle)
        return self._patterns[layers]

    def _scores(self, sizes: Mapping[sympy.Symbol, int]) -> Region:
        """What scores tokens by frequency, compiled once for all layers."""
        if self._frequency is None:
            self._frequency = Region(
                frequency_graph(self._hidden),
                self._lowering,
                self._hints(sizes, {}),
                "frequency scores",
                static=self._options.step_sizes == "static",
                on_failure=on_failure(self._options),
            )
        return self._frequency


def _joined_layer(one: LayerDecision, group: int) -> JoinedLayer:
    if one.site.plain is not None:
        inputs = sum(node.op == "placeholder" for node in one.site.plain.graph.graph.nodes)
        return JoinedLayer(one.site.plain, plain=True, select=tuple(range(inputs)))
    if one.ran is None:
        return JoinedLayer(restored=one.restored)
    return JoinedLayer(
        one.ran.region,
        select=one.ran.select,
        offset=None if one.ran.start is None else group,
        count=group if one.arm == "pruned" else None,
        ranked_by=one.ranked_by,
        by_frequency=one.by_frequency,
        base=one.base,
        entropy=one.measures,
        restored=one.restored,
        update=one.update,
    )
