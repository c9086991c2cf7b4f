"""Runs a decided step: works out its added inputs, and replays its recording where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..lowering.joined_layers import Extra, JoinedStep
from ..lowering.region import Region
from .controller import Controller
from .cuda_graphs import GraphMemory
from .maps import Block
from .recorded_inputs import Found, Inputs
from .recorded_step import Bundles, Origin, RecordedStep
from .step_plan import StepPlan
from .telling import Telling

# Updates of more bytes leave a step one by one: as one tensor they would be copied once more.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Ran:
    """What running a plan gave.

    Attributes:
        chosen: the keep sets [R, K] that it got, by layer.
        values: what its graph returned, without the updates if these are `updates`.
        updates: those of its layers, or None.
        told: what it worked out besides, in the order of `Telling`; nothing where it was not recorded.
    """

    chosen: Mapping[int, Tensor]
    values: Sequence[Any]
    updates: Block | None = None
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
        self._recorded: dict[tuple[Region, Telling | None, Bundles], RecordedStep] = {}

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
        blocks, bundles = _bundles(plan.pattern.joined, controller, hidden)
        key = plan.pattern.region, plan.telling, bundles
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._recorded[key] = self._record(plan, bundles, len(arguments), self._memory)
        given = [_value(extra, controller, plan, chosen) for extra in recorded.others]
        given += recorded.shared(controller, blocks)
        found = recorded((*arguments, *given), controller, staged)
        updates = None
        if found.updates is not None:
            updates = Block(controller.scale, plan.pattern.joined.updates, found.updates)
        return Ran(chosen, found.values, updates, found.told)

    def _record(self, plan: StepPlan, bundles: Bundles, arguments: int, memory: GraphMemory) -> RecordedStep:
        """What a plan runs as; `arguments` are the step's own."""
        written = plan.pattern.region.written
        if self._inputs is None:
            names = [str(node.target) for node in plan.pattern.joined.graph.graph.nodes][:arguments]
            self._inputs = Inputs(names, written)
        # A graph that writes more of them has inputs of its own.
        shared = self._inputs if written <= self._inputs.bound else None
        return RecordedStep(plan.pattern, plan.telling, bundles, memory, shared)


def _bundles(joined: JoinedStep, controller: Controller, hidden: Tensor) -> tuple[list[Tensor], Bundles]:
    """The updates that enter the next scale in few tensors, and how updates enter and leave it."""
    restored = [extra.at for extra in joined.extras if extra.kind == "restored"]
    found = controller.update_blocks(restored) if restored else None
    leave = 0 < len(joined.updates) * hidden.nbytes <= _MOST_BYTES
    if found is None:
        return [], Bundles(None, None, leave)
    sides = controller.schedule.sides
    origins = tuple(Origin(sides[block.scale], block.layers, own) for block, own in found)
    return [block.values for block, _ in found], Bundles(origins, sides[controller.scale], leave)


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
