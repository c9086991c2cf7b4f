"""A step as it is recorded: every tensor that enters or leaves costs the host time, so there are few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..criteria.restore import Size, restore_delta
from .controller import Controller
from .cuda_graphs import GraphedCall, GraphMemory
from .recorded_inputs import Found, Inputs
from .step_plan import Pattern
from .telling import Telling


class Origin(NamedTuple):
    """Where updates come from that a step gets as one tensor [N, R, L, C].

    Attributes:
        side: of the map of the scale that left them.
        layers: N of that scale.
        wanted: those whose updates this step takes of it.
    """

    side: Size
    layers: tuple[int, ...]
    wanted: tuple[int, ...]


class Bundles(NamedTuple):
    """Which updates enter and leave a recording as one.

    Attributes:
        origins: of those that enter; None where each enters alone, at the tokens of this scale.
        side: of the map of this scale, if any enter as one.
        leave: whether those that leave are one tensor.
    """

    origins: tuple[Origin, ...] | None
    side: Size | None
    leave: bool


class Outcome(NamedTuple):
    """What running a recorded step gave.

    Attributes:
        values: what its graph returns, without the updates if these are `updates`.
        updates: those of its layers, [N, R, L, C], or None.
        told: what was worked out besides, in the order of `Telling`; nothing where it was not recorded.
    """

    values: Sequence[Any]
    updates: Tensor | None
    told: Sequence[Tensor]


class RecordedStep:
    """One pattern, with what it tells.

    Args:
        pattern: the step.
        telling: what it works out besides.
        bundles: how updates enter and leave.
        memory: of the recordings.
        shared: the arguments that all patterns have, where it may be asked for them.

    Attributes:
        others: the added inputs that enter one by one.
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
        joined, origins = pattern.joined, bundles.origins
        kinds = {"map"} if origins is None else {"map", "restored"}
        self.others = tuple(extra for extra in joined.extras if extra.kind not in kinds)
        self._restored = tuple(extra.at for extra in joined.extras if extra.kind == "restored")
        self._maps = tuple(extra.at for extra in joined.extras if extra.kind == "map")
        maps_end = joined.results + len(joined.maps)
        self._maps_left = slice(joined.results, maps_end)
        self._updates_left = slice(maps_end, maps_end + len(joined.updates))
        self._end = joined.results + bool(joined.maps) + len({keep.selection for keep in joined.keeps})
        self._end += 0 if bundles.leave else len(joined.updates)
        self._takes_detail = telling is not None and telling.takes_detail
        more = [f"updates_{at}" for at in range(len(origins or ()))]
        more += ["maps"] if self._maps else []
        more += ["told_detail"] if self._takes_detail else []
        without = len(joined.extras) - len(self.others)
        self._call = GraphedCall(pattern.region, memory, without, more, shared)

    def shared(self, controller: Controller, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The inputs besides `others`; `blocks` [N, R, L, C] are those of the origins."""
        given = list(blocks)
        given += [controller.maps_of(self._maps)] if self._maps else []
        return [*given, controller.foretelling.detail] if self._takes_detail else given

    def __call__(self, arguments: tuple[Any, ...], controller: Controller, staged: Found | None) -> Outcome:
        """Run the step on its own arguments, then `others`, then `shared`."""
        note = partial(controller.ledger.note, controller.scale)
        values = list(self._call(self._run, arguments, note, self._run_alone, staged))
        updates = values.pop(0) if self._bundles.leave else None
        told, maps = values[self._end :], self._maps_left
        del values[self._end :]
        if maps.stop > maps.start:
            values[maps.start : maps.start + 1] = values[maps.start].unbind()
        return Outcome(values, updates, told)

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
        """What leaves: the updates if they are one, then what the step returns, its maps as one tensor.

        Besides these, its maps [R, L] and the R that it is passed.
        """
        given, detail = list(arguments), None
        if self._takes_detail:
            detail = given.pop()
        maps = given.pop().unbind() if self._maps else ()
        origins, side = self._bundles.origins, self._bundles.side
        if origins is not None and side is not None:
            blocks = given[len(given) - len(origins) :]
            del given[len(given) - len(origins) :]
            given += self._resized(origins, side, blocks)
        values = list(self._pattern.call(*given, *maps))
        measured = values[self._maps_left]
        updates = values[self._updates_left]
        if self._bundles.leave:
            values[self._updates_left] = []
        if measured:
            values[self._maps_left] = [torch.stack(measured)]
        if self._bundles.leave:
            values.insert(0, torch.stack(updates))
        return values, measured, detail

    def _resized(self, origins: Sequence[Origin], side: Size, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The updates [R, L, C] of the layers that want one, at the tokens of the map of `side`."""
        found: dict[int, Tensor] = {}
        for origin, block in zip(origins, blocks, strict=True):
            if origin.wanted != origin.layers:
                block = torch.stack([block[origin.layers.index(layer)] for layer in origin.wanted])
            resized = restore_delta(block.flatten(0, 1), origin.side, side)
            parts = resized.unflatten(0, (len(origin.wanted), -1)).unbind()
            found.update(zip(origin.wanted, parts, strict=True))
        return [found[layer] for layer in self._restored]
