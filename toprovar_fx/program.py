"""The program of a scale step that was rewritten."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import sympy
from torch import fx

from ._torch_private import compile_id
from .analysis.graph_sizes import graph_specs
from .analysis.reasons import Fallback, Reason
from .calibration.weights import KnownWeights
from .cost.expressions import Sizes
from .cost.generation import GenerationPrice
from .cost.traced_step import TracedStep
from .input_specs import group_offset
from .lowering.region import Region
from .lowering.rest import RegionModule, lower_calls
from .lowering.size_reader import SizeReader
from .options import Options
from .passes.context import PassContext
from .passes.step import PassRecord, Step
from .recording import note_called
from .runtime.budget import StepBudget
from .runtime.controller import Controller
from .runtime.failures import on_failure
from .runtime.generation import Generation, current_generation, outside_generations
from .runtime.graph_gate import GraphGate
from .runtime.graphs_per_scale import at_other_tokens
from .runtime.pricing import price_plan
from .runtime.replays import replays_well
from .runtime.short_caches import refuse_short_caches
from .runtime.silence import warn_before_first_scale, warn_outside_generation
from .runtime.step_caches import StepCaches
from .runtime.step_graphs import step_graphs
from .runtime.step_parts import StepParts
from .schedules import Schedule


class StepProgram:
    """A rewritten scale step.

    Attributes:
        step: graph and sites after the passes.
        records: what each pass did.
        options: the settings it was made with.
        compile_id: Dynamo's compilation that it was made in, as "frame/count", or None.
    """

    def __init__(
        self, step: Step, records: list[PassRecord], options: Options, lowering: str, context: PassContext
    ) -> None:
        self.step, self.records, self.options = step, records, options
        self.compile_id = compile_id()
        self._context = context
        self._fallbacks = [fallback for record in records for fallback in record.fallbacks]
        self._shortens = options.prunes or options.compacts
        self._warned = not (options.prunes or options.compacts or options.guidance_until is not None)
        facts = next(site.block.facts for site in step.sites if site.block.facts is not None)
        self._read_sizes = SizeReader(graph_specs(step.graph.graph))
        hints = context.named_hints(facts.length)
        failed = on_failure(options)

        def lower(name: str, graph: fx.GraphModule) -> Region:
            return Region(graph, lowering, hints, f"outside the blocks: {name}", on_failure=failed)

        called = lower_calls(step.graph, lower, partial(RegionModule, seen=self._seen))
        self._rest = list(dict.fromkeys(called))
        self._traced = TracedStep(step.graph.graph, facts)
        graphs = step_graphs([(site.layer, step.module(site)) for site in step.sites], called)
        self._graphs = self._traced.at_any_scale(graphs)
        self._weights = KnownWeights(step.graph, len(step.sites))
        self._branches = any(isinstance(step.module(site), GraphGate) for site in step.sites)
        wants_whole = options.runs_steps(suited=replays_well(step))
        self._whole = StepParts.of(step, options, lowering, self._step_hints) if wants_whole else None
        self._caches = StepCaches(step)
        self._budget: StepBudget | None = None
        if options.budget is not None:
            self._budget = StepBudget(self._graphs, self._traced.rows, self._traced.length)

    def __call__(self, *arguments: Any) -> Any:
        """Run the step under the generation that is open, or dense without one.

        Raises:
            ExtensionError: a registered name stands for something else than when this was compiled.
        """
        self.options.extensions.refuse_stale()
        note_called(self)
        running = current_generation()
        if running is not None and running.scale < 0:
            if not self._warned:
                self._warned = True
                warn_before_first_scale()
            with outside_generations():
                return self.step.graph(*arguments)
        other = at_other_tokens(self._traced.tokens)
        if other is not None:
            count = other.schedule.tokens[other.scale]
            detail = f"a graph of {self._traced.tokens} rows ran at a scale of {count} tokens"
            return self._run_apart(other, arguments, Reason.AMBIGUOUS_LENGTH, detail)
        controller = self._controller()
        needed = self._budget or self._whole or (controller is not None and self._shortens)
        sizes = dict(self._read_sizes(arguments)) if needed else {}
        if controller is None and not self._warned:
            self._warned = True
            warn_outside_generation()
        if controller is not None:
            running = current_generation()
            assert running is not None
            if controller.options.prunes and controller.ran:
                return self._run_apart(running, arguments, Reason.SECOND_CALL)
            if self._shortens:
                self._caches.begin(controller.caches, sizes)
            self._caches.refuse_short(controller.caches, running.short_caches, arguments)
            controller.enter()
            controller.branch(self._branches and not running.dense)
            # Scales may have programs of their own.
            controller.ledger.add_fallbacks(self._fallbacks)
        first = controller is not None and not controller.ledger.prunable
        calibrated = self.options.calibrated is not None
        if controller is not None and first:
            controller.ledger.prunable = True
            if calibrated:
                self._recognise(controller, arguments)
        if controller is not None and self._budget is not None:
            controller.ration(self._budget, self._traced.counted(sizes))
        results = None
        if controller is not None and self._whole is not None:
            results = self._whole.run(controller, arguments, sizes)
            if results is not None:
                self._caches.hold(controller.caches, arguments, results)
        if results is None:
            results = self.step.graph(*arguments)
        if controller is not None and first and not calibrated:
            # By now the device has something to do.
            self._recognise(controller, arguments)
        return results

    def _run_apart(
        self, running: Generation, arguments: tuple[Any, ...], reason: Reason, detail: str = ""
    ) -> Any:
        """Run all rows, as a graph that has nothing to do with the scale's layers.

        Raises:
            GraphError: an argument is a cache that lacks rows.
        """
        controller = running.controller(self.options, 0)
        others = [each.caches for each in running.controllers]
        refuse_short_caches(controller.caches, others, {}, arguments)
        controller.enter()
        controller.ledger.add_fallbacks([Fallback(reason, detail=detail)])
        with outside_generations():
            return self.step.graph(*arguments)

    def _recognise(self, controller: Controller, arguments: tuple[Any, ...]) -> None:
        """Note whose weights a generation runs with, and refuse a profile of others."""
        weights = self._weights.recognise(arguments)
        controller.ledger.model = weights.identity
        running = current_generation()
        if self.options.calibrated is not None and running is not None and not running.dense:
            self.options.calibrated.refuse_stale()
            layers = len(self.step.sites)
            self.options.calibrated.refuse_other(weights.identity(), layers, running.schedule)

    def price(
        self,
        schedule: Schedule,
        kept: Mapping[tuple[int, int], int] | None = None,
        *,
        tapped: Collection[tuple[int, int]] | None = None,
        rows: int | None = None,
    ) -> GenerationPrice:
        """What a generation would cost, before any runs.

        Args:
            schedule: the scales; all of them are run.
            kept: K by (scale, layer), 0 for a skipped layer; places that are not named keep all.
            tapped: (scale, layer) of the layers whose entropies are measured; by default those that rank the
                tokens of the places in `kept`.
            rows: batch rows R; by default those of the trace.

        Raises:
            OptionError: a place that does not exist, or a schedule or batch that the traced step cannot run.
        """
        sizes = self._traced.at_scales(schedule, rows)
        return price_plan(self._graphs, self.options, schedule, sizes, dict(kept or {}), tapped)

    @property
    def regions(self) -> list[Region]:
        """Every graph that this program can run."""
        joined = [] if self._whole is None else self._whole.regions
        blocks = [variant for region in self._context.regions for variant in region.variants]
        return [*blocks, *self._rest, *joined]

    def _step_hints(self, sizes: Mapping[sympy.Symbol, int], more: Mapping[str, int]) -> dict[str, int]:
        """Sizes at the last scale of the generation that runs, told from those of the scale that runs."""
        running = current_generation()
        if running is None or self._traced.tokens is not None:
            return {}
        schedule, scale = running.schedule, running.scale
        follows = self._traced.follow(schedule, scale, sizes)
        largest, ratio = schedule.tokens[-1], schedule.tokens[-1] / schedule.tokens[scale]
        hints = {str(symbol): value for symbol, value in follows.at(len(schedule) - 1).items()}
        hints |= {name: round(count * ratio) for name, count in more.items()}
        offset = schedule.ends[-1] - largest
        return hints | {str(group_offset(at)): offset for at in range(len(self.step.sites))}

    def _controller(self) -> Controller | None:
        running = current_generation()
        step = self.step
        return None if running is None else running.controller(self.options, len(step.sites), step.parts)

    def _seen(self, region: Region, sizes: Sizes) -> None:
        controller = self._controller()
        if controller is not None:
            controller.ledger.ran_outside(controller.scale, region, sizes)
