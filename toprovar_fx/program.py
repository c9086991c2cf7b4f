"""The program of a scale step that was rewritten, and the list of programs alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import sympy
from torch import fx

from ._torch_private import compile_id
from .analysis.block_facts import BlockFacts
from .analysis.reasons import Fallback, Reason
from .analysis.shapes import shape_of, size_of
from .calibration.weights import KnownWeights
from .cost.expressions import Sizes
from .cost.generation import GenerationPrice
from .cost.other_scales import at_other_scales
from .cost.scale_sizes import ScaleSizes
from .dense_program import DenseProgram
from .errors import OptionError
from .lowering.region import Region
from .lowering.rest import RegionModule
from .lowering.sizes import TOKENS, SizeReader, graph_specs, group_offset, spec_of, traced_sizes
from .options import Options
from .passes.context import PassContext
from .passes.step import PassRecord, Step
from .recording import note_called, note_compiled
from .runtime.budget import StepBudget
from .runtime.controller import Controller
from .runtime.failures import on_failure
from .runtime.generation import Generation, current_generation, outside_generations
from .runtime.graph_gate import GraphGate
from .runtime.graphs_per_scale import at_other_tokens
from .runtime.pricing import price_plan
from .runtime.short_caches import may_be_caches, refuse_short_caches
from .runtime.silence import warn_outside_generation
from .runtime.step_graphs import step_graphs
from .runtime.whole_step import WholeStep
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
        self._rest: list[Region] = []
        self._warned = not (options.prunes or options.compacts or options.guidance_until is not None)
        facts = next(site.block.facts for site in step.sites if site.block.facts is not None)
        self._read_sizes = SizeReader(graph_specs(step.graph.graph))
        hints = context.named_hints(facts.length)
        failed = on_failure(options)
        for name, module in list(step.graph.named_children()):
            if isinstance(module, fx.GraphModule):
                self._rest.append(
                    Region(module, lowering, hints, f"outside the blocks: {name}", on_failure=failed)
                )
                setattr(step.graph, name, RegionModule(self._rest[-1], self._seen))
        self._graphs = step_graphs([(site.layer, step.module(site)) for site in step.sites], self._rest)
        self._rows, self._length = (spec_of(facts.hidden).shape or ())[:2]
        slots = {shape_of(write.cache)[write.axis] for write in facts.writes}
        # Where the token count is a constant, this step is that of one scale.
        self._tokens = int(self._length) if self._length.is_Integer else None
        if self._tokens is not None:
            start = _traced_start(step, facts)
            self._graphs, self._length = at_other_scales(self._graphs, self._tokens, start), TOKENS
            slots.discard(sympy.Integer(start + self._tokens))
        self._weights = KnownWeights(step.graph, len(step.sites))
        self._branches = any(isinstance(step.module(site), GraphGate) for site in step.sites)
        wants_whole = options.unit == "step"
        self._whole = WholeStep(step, options, lowering, self._step_hints) if wants_whole else None
        # The others grow with the scales.
        self._slots = {size for size in slots if size.is_Integer or size.is_Symbol}
        self._cache_inputs = _cache_inputs(step)
        self._no_weights: list[int] | None = None
        self._budget = None if options.budget is None else StepBudget(self._graphs, self._rows, self._length)

    def __call__(self, *arguments: Any) -> Any:
        """Run the step under the generation that is open, or dense without one.

        Raises:
            ExtensionError: a registered name stands for something else than when this was compiled.
        """
        self.options.extensions.refuse_stale()
        note_called(self)
        other = at_other_tokens(self._tokens)
        if other is not None:
            return self._run_apart(other, arguments)
        controller = self._controller()
        if controller is None and not self._warned:
            self._warned = True
            warn_outside_generation()
        if controller is not None:
            self._refuse_short_caches(controller, arguments)
            controller.enter()
            controller.branch(self._branches)
            # Scales may have programs of their own.
            controller.ledger.add_fallbacks(self._fallbacks)
        if controller is not None and not controller.ledger.prunable:
            self._recognise(controller, arguments)
            controller.ledger.prunable = True
        sizes = dict(self._read_sizes(arguments)) if self._budget or self._whole else {}
        if controller is not None and self._budget is not None:
            one_scale = {} if self._tokens is None else {TOKENS: self._tokens}
            controller.ration(self._budget, {**sizes, **one_scale})
        if controller is not None and self._whole is not None:
            results = self._whole.run(controller, arguments, sizes)
            if results is not None:
                self._hold_caches(controller, arguments)
                return results
        return self.step.graph(*arguments)

    def _run_apart(self, running: Generation, arguments: tuple[Any, ...]) -> Any:
        """Run all rows of a graph whose constant token count is not that of the scale that runs."""
        controller = running.controller(self.options, 0)
        others = [each.caches for each in running.controllers]
        refuse_short_caches(controller.caches, others, {}, arguments)
        controller.enter()
        count = running.schedule.tokens[running.scale]
        detail = f"a graph of {self._tokens} rows ran at a scale of {count} tokens"
        controller.ledger.add_fallbacks([Fallback(Reason.AMBIGUOUS_LENGTH, detail=detail)])
        with outside_generations():
            return self.step.graph(*arguments)

    def _hold_caches(self, controller: Controller, arguments: tuple[Any, ...]) -> None:
        """Note the caches of all layers, as their gates do where a step runs by blocks."""
        held: dict[int, list[Any]] = {}
        for at, layers in self._cache_inputs.items():
            for layer in layers:
                held.setdefault(layer, []).append(arguments[at])
        for layer, caches in held.items():
            controller.caches.hold(layer, caches)

    def _refuse_short_caches(self, controller: Controller, arguments: tuple[Any, ...]) -> None:
        running = current_generation()
        assert running is not None
        if self._no_weights is None:
            # Dynamo compiles anew where a parameter becomes another kind of tensor.
            self._no_weights = may_be_caches(arguments)
        given = self._cache_inputs, arguments, self._no_weights
        refuse_short_caches(controller.caches, running.short_caches, *given)

    def _recognise(self, controller: Controller, arguments: tuple[Any, ...]) -> None:
        """Note whose weights a generation runs with, and refuse a profile of others."""
        self._weights.recognise(arguments)
        controller.ledger.model = self._weights.identity
        running = current_generation()
        if self.options.calibrated is not None and running is not None:
            self.options.calibrated.refuse_stale()
            layers = len(self.step.sites)
            self.options.calibrated.refuse_other(self._weights.identity(), layers, running.schedule)

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
        sizes = self._sizes_of(schedule, rows)
        return price_plan(self._graphs, self.options, schedule, sizes, dict(kept or {}), tapped)

    def _sizes_of(self, schedule: Schedule, rows: int | None) -> ScaleSizes:
        """Sizes of the inputs at every scale, from those of the trace."""
        traced = traced_sizes(self.step.graph.graph)
        if self._tokens is not None:
            traced[TOKENS] = self._tokens
        if rows is not None and self._rows in traced:
            traced[self._rows] = rows
        elif rows is not None and self._rows != rows:
            raise OptionError(
                f"rows={rows}: expected {self._rows}, the batch rows that the step was traced for"
            )
        needed = schedule.ends[-1]
        for slots in (traced.get(slots, slots) for slots in self._slots):
            if slots < needed:
                raise OptionError(
                    f"a schedule of {needed} tokens: expected at most {slots}, the traced cache's"
                )
        length = traced.get(self._length)
        seen = next((scale for scale, count in enumerate(schedule.tokens) if count == length), 0)
        return ScaleSizes(schedule, [(seen, traced)], {self._length}, {self._rows, *self._slots})

    @property
    def regions(self) -> list[Region]:
        """Every graph that this program can run."""
        joined = [] if self._whole is None else self._whole.regions
        blocks = [variant for region in self._context.regions for variant in region.variants]
        return [*blocks, *self._rest, *joined]

    def _step_hints(self, sizes: Mapping[sympy.Symbol, int], more: Mapping[str, int]) -> dict[str, int]:
        """Sizes at the last scale of the generation that runs, told from those of the scale that runs."""
        running = current_generation()
        if running is None or self._tokens is not None:
            return {}
        schedule, scale = running.schedule, running.scale
        follows = ScaleSizes(schedule, [(scale, sizes)], {self._length}, {self._rows, *self._slots})
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


def _traced_start(step: Step, facts: BlockFacts) -> int:
    """The first cache row that a layer wrote when the step was traced; 0 without a cache."""
    start = size_of(facts.writes[0].start) if facts.writes else None
    return 0 if start is None else int(start.xreplace(traced_sizes(step.graph.graph)))


def _cache_inputs(step: Step) -> dict[int, set[int]]:
    """Positions of the step's inputs that are caches of layers with gates, and those layers."""
    graph = step.graph.graph
    position = {node: at for at, node in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    calls = {node.target: node for node in graph.nodes if node.op == "call_module"}
    found: dict[int, set[int]] = {}
    for site in step.sites:
        if site.block.facts is None:
            continue
        inputs = [node for node in site.block.graph.graph.nodes if node.op == "placeholder"]
        for write in site.block.facts.writes:
            cache = calls[site.name].args[inputs.index(write.cache)]
            while cache.op != "placeholder":
                cache = cache.args[0]
            found.setdefault(position[cache], set()).add(site.layer)
    return found


Program = TypeVar("Program", StepProgram, DenseProgram)
_PROGRAMS: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(program: Program) -> Program:
    """Keep track of a program for `explain`, as long as Dynamo holds it."""
    _PROGRAMS.add(program)
    note_compiled(program)
    return program


def keeps_alive(call: Callable[..., Any], program: DenseProgram) -> bool:
    """Let `program` live as long as the function that Dynamo gets in its place; whether that works."""
    try:
        call.toprovar_program = program  # type: ignore[attr-defined]
    except AttributeError:
        return False
    return True


def programs(options: Options | None = None) -> list[StepProgram | DenseProgram]:
    """Programs alive in this process, those of equal `options` if given."""
    return [program for program in list(_PROGRAMS) if options is None or program.options == options]
