"""Compiled programs: what the backend returns to Dynamo for a graph, and the list of those alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from torch import fx

from ._torch_private import compile_id
from .analysis.reasons import Fallback
from .analysis.shapes import shape_of
from .cost.expressions import Sizes
from .cost.generation import GenerationPrice
from .cost.scale_sizes import ScaleSizes
from .errors import OptionError
from .lowering.region import Region
from .lowering.rest import RegionModule
from .lowering.sizes import SizeReader, graph_specs, spec_of, traced_sizes
from .options import Options
from .passes.context import PassContext
from .passes.step import PassRecord, Step
from .recording import note_called, note_compiled
from .runtime.budget import StepBudget
from .runtime.controller import Controller
from .runtime.generation import current_generation
from .runtime.pricing import price_plan
from .runtime.silence import warn_outside_generation
from .runtime.step_graphs import step_graphs
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
        self._warned = not options.prunes
        facts = next(site.block.facts for site in step.sites if site.block.facts is not None)
        self._read_sizes = SizeReader(graph_specs(step.graph.graph))
        hints = context.named_hints(facts.length)
        for name, module in list(step.graph.named_children()):
            if isinstance(module, fx.GraphModule):
                self._rest.append(Region(module, lowering, hints, f"outside the blocks: {name}"))
                setattr(step.graph, name, RegionModule(self._rest[-1], self._seen))
        self._graphs = step_graphs([(site.layer, step.module(site)) for site in step.sites], self._rest)
        self._rows, self._length = (spec_of(facts.hidden).shape or ())[:2]
        self._slots = {shape_of(write.cache)[write.axis] for write in facts.writes}
        self._budget = None if options.budget is None else StepBudget(self._graphs, self._rows, self._length)

    def __call__(self, *arguments: Any) -> Any:
        """Run the step under the generation that is open, or dense without one.

        Raises:
            ExtensionError: a registered name stands for something else than when this was compiled.
        """
        self.options.extensions.refuse_stale()
        note_called(self)
        controller = self._controller()
        if controller is None and not self._warned:
            self._warned = True
            warn_outside_generation()
        if controller is not None:
            controller.enter()
        if controller is not None and not controller.ledger.prunable:
            controller.ledger.prunable = True
            controller.ledger.fallbacks.extend(self._fallbacks)
        if controller is not None and self._budget is not None:
            controller.ration(self._budget, dict(self._read_sizes(arguments)))
        return self.step.graph(*arguments)

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
        return [*self._context.regions, *self._rest]

    def _controller(self) -> Controller | None:
        running = current_generation()
        step = self.step
        return None if running is None else running.controller(self.options, len(step.sites), step.parts)

    def _seen(self, region: Region, sizes: Sizes) -> None:
        controller = self._controller()
        if controller is not None:
            controller.ledger.other.append((controller.scale, region, sizes))


class DenseProgram:
    """A graph that stays as it is.

    Attributes:
        records, options, compile_id: as for `StepProgram`.
        one_token: whether that is because there is nothing to prune in it.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        region: Region,
        records: list[PassRecord],
        options: Options,
        fallbacks: list[Fallback],
        one_token: bool,
    ) -> None:
        self.records, self.options, self.one_token = records, options, one_token
        self.compile_id = compile_id()
        self._call, self._region, self._fallbacks = call, region, fallbacks

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph and leave its reasons with the generation."""
        note_called(self)
        running = current_generation()
        if running is not None:
            controller = running.controller(self.options, 0)
            controller.enter()
            controller.ledger.other.append((running.scale, self._region, self._region.sizes(arguments)))
            if not self.one_token:
                controller.ledger.fallbacks.extend(self._fallbacks)
        return self._call(*arguments)

    @property
    def regions(self) -> list[Region]:
        """The one graph."""
        return [self._region]


Program = TypeVar("Program", StepProgram, DenseProgram)
_PROGRAMS: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(program: Program) -> Program:
    """Keep track of a program for `explain`, as long as Dynamo holds it."""
    _PROGRAMS.add(program)
    note_compiled(program)
    return program


def programs(options: Options | None = None) -> list[StepProgram | DenseProgram]:
    """Programs alive in this process, those of equal `options` if given."""
    return [program for program in list(_PROGRAMS) if options is None or program.options == options]
