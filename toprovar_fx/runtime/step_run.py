"""Runs a decided step: works out its added inputs, and replays its recording where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..lowering.joined_layers import Extra
from ..lowering.region import Region
from .controller import Controller
from .cuda_graphs import GraphedCall, GraphMemory
from .recorded_inputs import Found, Inputs
from .step_plan import Pattern, StepPlan
from .telling import Telling


@dataclass(frozen=True)
class Ran:
    """What running a plan gave.

    Attributes:
        chosen: the keep sets [R, K] that it got, by layer.
        values: what its graph returned.
        told: what it worked out besides, in the order of `Telling`; nothing where it was not recorded.
    """

    chosen: Mapping[int, Tensor]
    values: Sequence[Any]
    told: Sequence[Tensor] = ()


class StepRuns:
    """Runs the plans of one step.

    Args:
        memory: of the step's recordings; None where nothing is recorded.
    """

    def __init__(self, memory: GraphMemory | None) -> None:
        self._memory = memory
        # The step's own arguments; its first plan most often writes the caches of all layers.
        self._inputs: Inputs | None = None
        self._recorded: dict[tuple[Region, Telling | None], _Recorded] = {}

    def stage(self, arguments: tuple[Any, ...]) -> Found | None:
        """Copy what plans need of the step's arguments, while nobody knows yet which of them will run."""
        if self._memory is None or self._inputs is None:
            return None
        with self._memory.lock, self._memory.recorder.in_order():
            return self._inputs.stage(arguments, self._memory.buffers)

    def __call__(
        self,
        plan: StepPlan,
        controller: Controller,
        arguments: tuple[Any, ...],
        hidden: Tensor,
        staged: Found | None,
    ) -> Ran:
        """Run a plan.

        Args:
            plan: of the scale that is about to run.
            controller: of the generation.
            arguments: of the step.
            hidden: a tensor of the shape, dtype and device of the hidden state.
            staged: what `stage` gave for these arguments, if it was asked.
        """
        chosen = plan.keeps if plan.keeps is not None else controller.keep_sets(plan.chosen, hidden)
        extras = plan.pattern.joined.extras
        if self._memory is None:
            given = [_value(extra, controller, plan, chosen) for extra in extras]
            return Ran(chosen, plan.pattern.call(*arguments, *given))
        key = plan.pattern.region, plan.telling
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._recorded[key] = self._record(plan, len(arguments), self._memory)
        given = [_value(extra, controller, plan, chosen) for extra in recorded.others]
        given += recorded.shared(controller)
        return Ran(chosen, *recorded((*arguments, *given), controller, staged))

    def _record(self, plan: StepPlan, arguments: int, memory: GraphMemory) -> _Recorded:
        """What a plan runs as; `arguments` are the step's own."""
        written = plan.pattern.region.written
        if self._inputs is None:
            names = [str(node.target) for node in plan.pattern.joined.graph.graph.nodes][:arguments]
            self._inputs = Inputs(names, written)
        # A graph that writes more of them has inputs of its own.
        shared = self._inputs if written <= self._inputs.bound else None
        return _Recorded(plan.pattern, plan.telling, memory, shared)


class _Recorded:
    """A step whose maps enter and leave its recording as one tensor each: every tensor costs the host time.

    Args:
        pattern: the step.
        telling: what it works out besides.
        memory: of the recordings.
        shared: the arguments that all patterns have, where it may be asked for them.
    """

    def __init__(
        self, pattern: Pattern, telling: Telling | None, memory: GraphMemory, shared: Inputs | None
    ) -> None:
        self._pattern, self._telling, joined = pattern, telling, pattern.joined
        self.others = tuple(extra for extra in joined.extras if extra.kind != "map")
        self._maps = tuple(extra.at for extra in joined.extras if extra.kind == "map")
        self._left = slice(joined.results, joined.results + len(joined.maps))
        selections = len({keep.selection for keep in joined.keeps})
        self._end = joined.results + bool(joined.maps) + len(joined.updates) + selections
        more = ["maps"] if self._maps else []
        self._takes_detail = telling is not None and telling.takes_detail
        more += ["told_detail"] if self._takes_detail else []
        self._call = GraphedCall(pattern.region, memory, len(self._maps), more, shared)

    def shared(self, controller: Controller) -> list[Tensor]:
        """The inputs besides `others`."""
        given = [controller.maps_of(self._maps)] if self._maps else []
        return [*given, controller.foretelling.detail] if self._takes_detail else given

    def __call__(
        self, arguments: tuple[Any, ...], controller: Controller, staged: Found | None
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """What the graph of the step returns, and what is told."""
        note = partial(controller.ledger.note, controller.scale)
        values = list(self._call(self._run, arguments, note, self._run_alone, staged))
        told, maps = values[self._end :], self._left
        del values[self._end :]
        if maps.stop > maps.start:
            values[maps.start : maps.start + 1] = values[maps.start].unbind()
        return values, told

    def _run(self, *arguments: Any) -> tuple[Any, ...]:
        """The step on what is passed to the recording, and what is told of its maps."""
        values, maps, detail = self._values(arguments)
        told: tuple[Tensor, ...] = ()
        if self._telling is not None:
            told = self._telling(dict(zip(self._pattern.joined.maps, maps, strict=True)), detail)
        return *values, *told

    def _run_alone(self, *arguments: Any) -> tuple[Any, ...]:
        """The step alone: without a recording the kernels of what is told would be launched one by one."""
        return tuple(self._values(arguments)[0])

    def _values(self, arguments: Sequence[Any]) -> tuple[list[Any], list[Tensor], Tensor | None]:
        """What the step returns, its maps as one tensor; its maps [R, L]; the R that it is passed."""
        given, detail = list(arguments), None
        if self._takes_detail:
            detail = given.pop()
        if self._maps:
            given += given.pop().unbind()
        values = list(self._pattern.call(*given))
        maps = values[self._left]
        if maps:
            values[self._left] = [torch.stack(maps)]
        return values, maps, detail


def _value(extra: Extra, controller: Controller, plan: StepPlan, chosen: Mapping[int, Tensor]) -> Any:
    """The argument of one added input."""
    match extra.kind:
        case "offset":
            return plan.groups[extra.at].place.offset
        case "count":
            return plan.groups[extra.at].count
        case "images":
            return controller.images
        case "keep":
            return chosen[extra.at]
        case "map":
            return controller.map_of(extra.at)
    return controller.restored(extra.at)
