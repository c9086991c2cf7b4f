"""Compiled programs: what the backend returns to Dynamo for a graph, and the list of those alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

from .analysis.reasons import Fallback
from .lowering.region import Region, Sizes
from .lowering.rest import RegionModule
from .options import Options
from .passes.context import PassContext
from .passes.step import PassRecord, Step
from .runtime.controller import Controller
from .runtime.generation import current_generation


class StepProgram:
    """A rewritten scale step.

    Attributes:
        step: graph and sites after the passes.
        records: what each pass did.
        options: the settings it was made with.
    """

    def __init__(
        self, step: Step, records: list[PassRecord], options: Options, lowering: str, context: PassContext
    ) -> None:
        self.step, self.records, self.options = step, records, options
        self._context = context
        self._fallbacks = [fallback for record in records for fallback in record.fallbacks]
        self._rest: list[Region] = []
        facts = next(site.block.facts for site in step.sites if site.block.facts is not None)
        hints = context.named_hints(facts.length)
        for name, module in list(step.graph.named_children()):
            if isinstance(module, fx.GraphModule):
                self._rest.append(Region(module, lowering, hints, f"outside the blocks: {name}"))
                setattr(step.graph, name, RegionModule(self._rest[-1], self._seen))

    def __call__(self, *arguments: Any) -> Any:
        """Run the step under the generation that is open, or dense without one."""
        controller = self._controller()
        if controller is not None:
            controller.enter()
        if controller is not None and not controller.ledger.prunable:
            controller.ledger.prunable = True
            controller.ledger.fallbacks.extend(self._fallbacks)
        return self.step.graph(*arguments)

    @property
    def regions(self) -> list[Region]:
        """Every graph that this program can run."""
        return [*self._context.regions, *self._rest]

    def _controller(self) -> Controller | None:
        running = current_generation()
        return None if running is None else running.controller(self.options, len(self.step.sites))

    def _seen(self, region: Region, sizes: Sizes) -> None:
        controller = self._controller()
        if controller is not None:
            controller.ledger.other.append((controller.scale, region, sizes))


class DenseProgram:
    """A graph that stays as it is.

    Attributes:
        records, options: as for `StepProgram`.
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
        self._call, self._region, self._fallbacks = call, region, fallbacks

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph and leave its reasons with the generation."""
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
    return program


def programs(options: Options | None = None) -> list[StepProgram | DenseProgram]:
    """Programs alive in this process, those of equal `options` if given."""
    return [program for program in list(_PROGRAMS) if options is None or program.options == options]
