"""Runs a decided step: works out its added inputs, and replays its recording where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..criteria.restore import Size
from ..lowering.joined_layers import Extra, JoinedStep
from ..lowering.region import Region
from .controller import Controller
from .cuda_graphs import GraphMemory
from .maps import Block, Blocks
from .recorded_inputs import Found, Inputs
from .recorded_step import DETAIL, Bundles, Origin, RecordedStep, names_of_blocks
from .step_account import Leavings
from .step_plan import StepPlan
from .telling import Telling

# Updates of more bytes leave a step one by one: as one tensor they would be copied once more.
_MOST_BYTES = 64 << 20
# Of one pattern at one scale: of which scale each layer's latest values are may differ from image to image,
# and a recording costs as much as several scales. After so many there is one into which all enter alone.
_MOST_BUNDLES = 4

# A pattern, what it tells, and the sides of the map that values which enter are resized to.
_Place = tuple[Region, Telling | None, Size | None]
_Recorded = dict[Bundles, RecordedStep]


@dataclass(frozen=True)
class Ran:
    """What running a plan gave.

    Attributes:
        chosen: the keep sets [R, K] that it got, by layer.
        values: what its graph returned, less `maps` and `updates`.
        maps, updates: those of its layers, or None where they are among the values.
        told: what it worked out besides, in the order of `Telling`; nothing where it was not recorded.
    """

    chosen: Mapping[int, Tensor]
    values: Sequence[Any]
    maps: Block | None = None
    updates: Block | None = None
    told: Sequence[Tensor] = ()

    def leavings(self, joined: JoinedStep) -> Leavings:
        """What the step leaves; its maps and updates are among its values unless they are blocks."""
        values = list(self.values[joined.results :])
        maps = _parts(self.maps, joined.maps, values)
        updates = _parts(self.updates, joined.updates, values)
        return Leavings(maps, updates, self.maps, self.updates, joined.keeps, values)


class StepRuns:
    """Runs the plans of one step.

    Args:
        memory: of the step's recordings; None where nothing is recorded.
    """

    def __init__(self, memory: GraphMemory | None) -> None:
        self._memory = memory
        # The step's own arguments; its first plan most often writes the caches of all layers.
        self._inputs: Inputs | None = None
        self._recorded: dict[_Place, _Recorded] = {}
        # A place is long to hash, and the card may be waiting.
        self._by_plan: WeakKeyDictionary[StepPlan, dict[Size | None, _Recorded]] = WeakKeyDictionary()

    def stage(self, arguments: tuple[Any, ...], controller: Controller) -> Found | None:
        """Copy what plans need of the step's arguments, while nobody knows yet which of them will run.

        So are the maps and updates that most of them take, and R.
        """
        if self._memory is None or self._inputs is None:
            return None
        buffers, names, values = self._memory.buffers, list[str](), list[Tensor]()
        for kind, found in (
            ("restored", controller.left.update_blocks()),
            ("map", controller.left.map_blocks()),
        ):
            names += names_of_blocks(kind, len(found or ()))
            values += [block.values for block, _ in found or ()]
        detail = controller.foretelling.detail
        if detail is not None:
            names.append(DETAIL)
            values.append(detail)
        with self._memory.lock, self._memory.recorder.in_order():
            buffers.fill(buffers.find(names, values)[1])
            return self._inputs.stage(arguments, buffers)

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
        blocks, bundles = self._bundles(plan.pattern.joined, controller, hidden)
        known = self._known(plan, bundles.side)
        recorded = known.get(bundles)
        if recorded is None and len(known) >= _MOST_BUNDLES:
            blocks, bundles = [], bundles.alone()
            recorded = known.get(bundles)
        if recorded is None:
            recorded = known[bundles] = self._record(plan, bundles, len(arguments), self._memory)
        given = [_value(extra, controller, plan, chosen) for extra in recorded.others]
        given += recorded.shared(controller, blocks)
        return Ran(chosen, *recorded((*arguments, *given), controller, staged))

    def _known(self, plan: StepPlan, side: Size | None) -> _Recorded:
        """What was recorded for whatever runs as this plan does."""
        by_side = self._by_plan.setdefault(plan, {})
        if side not in by_side:
            by_side[side] = self._recorded.setdefault((plan.pattern.region, plan.telling, side), {})
        return by_side[side]

    @staticmethod
    def _bundles(joined: JoinedStep, controller: Controller, hidden: Tensor) -> tuple[list[Tensor], Bundles]:
        """What enters the next scale in few tensors, and how maps and updates enter and leave it."""
        maps = controller.left.map_blocks(joined.takes["map"])
        # Whatever enters alone comes first.
        updates = None if maps is None else controller.left.update_blocks(joined.takes["restored"])
        sides = controller.schedule.sides

        def origins(found: Blocks | None) -> tuple[Origin, ...] | None:
            if found is None:
                return None
            return tuple(Origin(sides[block.scale], block.layers, own) for block, own in found)

        side = sides[controller.scale] if maps or updates else None
        leave = 0 < len(joined.updates) * hidden.nbytes <= _MOST_BYTES
        blocks = [block.values for found in (updates, maps) for block, _ in found or ()]
        return blocks, Bundles(origins(updates), origins(maps), side, leave)

    def _record(self, plan: StepPlan, bundles: Bundles, arguments: int, memory: GraphMemory) -> RecordedStep:
        """What a plan runs as; `arguments` are the step's own."""
        written = plan.pattern.region.written
        if self._inputs is None:
            names = [str(node.target) for node in plan.pattern.joined.graph.graph.nodes][:arguments]
            self._inputs = Inputs(names, written)
        # A graph that writes more of them has inputs of its own.
        shared = self._inputs if written <= self._inputs.bound else None
        return RecordedStep(plan.pattern, plan.telling, bundles, memory, shared)


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
            return controller.left.map_of(extra.at)
    return controller.left.restored(extra.at)


def _parts(block: Block | None, layers: Sequence[int], values: list[Tensor]) -> Mapping[int, Tensor]:
    """The tensors of layers; without a block they are the first of `values`, and are taken away."""
    if block is not None:
        return block.parts
    return {layer: values.pop(0) for layer in layers}
