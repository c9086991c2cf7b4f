"""A step as it is recorded: every tensor that enters or leaves costs the host time, so there are few.

Maps and updates of many layers leave as one tensor of the scale that they are of, and enter so at later
ones; the recording resizes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..criteria.restore import Size, restore_delta, upsample_map
from .controller import Controller
from .cuda_graphs import GraphedCall, GraphMemory
from .maps import Block
from .recorded_inputs import Found, Inputs
from .step_plan import Pattern
from .telling import Telling


class Origin(NamedTuple):
    """Where values come from that a step gets as one tensor [N, R, L, ...].

    Attributes:
        side: of the map of the scale that left them.
        layers: N of that scale.
        wanted: those whose values this step takes of it.
    """

    side: Size
    layers: tuple[int, ...]
    wanted: tuple[int, ...]


class Bundles(NamedTuple):
    """What enters and leaves a recording as few tensors.

    Attributes:
        updates, maps: origins of those that enter; None where each enters alone, at the tokens of this scale.
        side: of the map of this scale, if it has origins.
        leave: whether the updates that leave are one tensor.
    """

    updates: tuple[Origin, ...] | None
    maps: tuple[Origin, ...] | None
    side: Size | None
    leave: bool

    def alone(self) -> Bundles:
        """The same where all that enters does so alone."""
        return Bundles(None, None, None, self.leave)


# What the input is called that R enters by.
DETAIL = "told_detail"


def names_of_blocks(kind: str, count: int) -> list[str]:
    """What the inputs are called that enter instead of those of a kind, "restored" or "map"."""
    return [f"{kind}_block_{at}" for at in range(count)]


class Outcome(NamedTuple):
    """What running a recorded step gave.

    Attributes:
        values: what its graph returns, less `maps` and `updates`.
        maps: those that it measured, if any.
        updates: those of its layers; None where they are among the values.
        told: what was worked out besides, in the order of `Telling`; nothing where it was not recorded.
    """

    values: Sequence[Any]
    maps: Block | None
    updates: Block | None
    told: Sequence[Tensor]


class RecordedStep:
    """One pattern, with what it tells.

    Args:
        pattern: the step.
        telling: what it works out besides.
        bundles: how maps and updates enter and leave.
        memory: of the recordings.
        shared: the arguments that all patterns have, where it may be asked for them.

    Attributes:
        others: the added inputs that enter one by one, the first of them all.
    """

    def __init__(
        self,
        pattern: Pattern,
        telling: Telling | None,
        bundles: Bundles,
        memory: GraphMemory,
        shared: Inputs | None,
    ) -> None:
        self._pattern, self._telling, self._bundles = pattern, telling, bundles
        joined = pattern.joined
        entering = {"restored": bundles.updates, "map": bundles.maps}
        together = {kind for kind, origins in entering.items() if origins is not None}
        self.others = tuple(extra for extra in joined.extras if extra.kind not in together)
        maps_end = joined.results + len(joined.maps)
        self._maps_left = slice(joined.results, maps_end)
        self._updates_left = slice(maps_end, maps_end + len(joined.updates))
        # Of the values that leave alone.
        self._end = joined.results + len({keep.selection for keep in joined.keeps})
        self._end += 0 if bundles.leave else len(joined.updates)
        self._takes_detail = telling is not None and telling.takes_detail
        more = [
            name for kind, origins in entering.items() for name in names_of_blocks(kind, len(origins or ()))
        ]
        more += [DETAIL] if self._takes_detail else []
        without = len(joined.extras) - len(self.others)
        self._call = GraphedCall(pattern.region, memory, without, more, shared)

    def shared(self, controller: Controller, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The inputs behind `others`; `blocks` [N, R, L, ...] are those of the origins."""
        if not self._takes_detail:
            return list(blocks)
        detail = controller.foretelling.detail
        assert detail is not None, "a step that takes R was planned before R was measured"
        return [*blocks, detail]

    def __call__(self, arguments: tuple[Any, ...], controller: Controller, staged: Found | None) -> Outcome:
        """Run the step on its own arguments, then `others`, then `shared`."""
        note = partial(controller.ledger.note, controller.scale)
        values = list(self._call(self._run, arguments, note, self._run_alone, staged))
        joined, scale = self._pattern.joined, controller.scale
        maps = Block.of(scale, joined.maps, values.pop(0)) if joined.maps else None
        updates = Block.of(scale, joined.updates, values.pop(0)) if self._bundles.leave else None
        return Outcome(values[: self._end], maps, updates, values[self._end :])

    def _run(self, *arguments: Any) -> tuple[Any, ...]:
        """The step on what is passed to the recording, and what is told of its maps."""
        values, detail = self._values(arguments)
        told: tuple[Tensor, ...] = ()
        if self._telling is not None:
            told = self._telling(self._pattern.joined.maps, values[0], detail)
        return *values, *told

    def _run_alone(self, *arguments: Any) -> tuple[Any, ...]:
        """The step alone: without a recording the kernels of what is told would be launched one by one."""
        return tuple(self._values(arguments)[0])

    def _values(self, arguments: Sequence[Any]) -> tuple[list[Any], Tensor | None]:
        """What leaves: the maps, [N, R, L], and the updates, if they are one; then what else is returned.

        Besides these, the R that it is passed.
        """
        given, detail = list(arguments), None
        if self._takes_detail:
            detail = given.pop()
        values = list(self._pattern.call(*self._spread(given)))
        maps, updates = values[self._maps_left], values[self._updates_left]
        alone = [] if self._bundles.leave else updates
        left = [*values[: self._maps_left.start], *alone, *values[self._updates_left.stop :]]
        together = [torch.stack(each) for each in (maps, updates[len(alone) :]) if each]
        return [*together, *left], detail

    def _spread(self, given: list[Any]) -> list[Any]:
        """The graph's inputs, of which the last came in as blocks."""
        entering: list[tuple[Sequence[Origin], str, Callable[[Tensor, Size, Size], Tensor]]] = [
            (self._bundles.updates or (), "restored", restore_delta),
            (self._bundles.maps or (), "map", upsample_map),
        ]
        begin = len(given) - sum(len(origins) for origins, _, _ in entering)
        spread, blocks = given[:begin], iter(given[begin:])
        for origins, kind, resize in entering:
            found: dict[int, Tensor] = {}
            for origin in origins:
                found |= self._resized(origin, next(blocks), resize)
            spread += [found[layer] for layer in self._pattern.joined.takes[kind] if origins]
        return spread

    def _resized(
        self, origin: Origin, block: Tensor, resize: Callable[[Tensor, Size, Size], Tensor]
    ) -> dict[int, Tensor]:
        """The values [R, L, ...] of the layers that are wanted, at the tokens of this scale."""
        side = self._bundles.side
        assert side is not None
        if origin.wanted != origin.layers:
            block = torch.stack([block[origin.layers.index(layer)] for layer in origin.wanted])
        made = resize(block.flatten(0, 1), origin.side, side).unflatten(0, (len(origin.wanted), -1))
        return dict(zip(origin.wanted, made.unbind(), strict=True))
