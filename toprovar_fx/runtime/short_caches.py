"""Caches that lack rows: who may read them.

A pruned layer leaves fewer rows in its cache than there were tokens. Its own gates know how many; a graph
that stayed dense, another layer or another model would read the missing rows as keys. Nothing in the tensor
shows it, so the generation remembers which memory lacks rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._torch_private import may_overlap, storages_of
from ..errors import GraphError


class ShortCaches:
    """The caches that the layers of one model wrote last, and how many rows each lacks.

    Args:
        known: gets this record once one of its caches lacks rows, or may.
    """

    def __init__(self, known: list[ShortCaches]) -> None:
        self._known = known
        self.dropped: dict[int, int] = {}
        self._uncertain: set[int] = set()
        # By layer: where its scales began, ascending, and how many rows were left out of which.
        self._begun: dict[int, list[int]] = {}
        self._left_out: dict[int, list[tuple[int | None, int]]] = {}
        # The tensors are kept: memory that is given back may become that of another tensor.
        self._held: dict[int, list[Tensor]] = {}

    def hold(self, layer: int, caches: Iterable[Tensor]) -> None:
        """Note what `layer` wrote at this scale."""
        self._held[layer] = list(caches)

    def release(self) -> None:
        """Let go of the tensors: no graph of the generation runs any more."""
        self._held.clear()

    def drop(self, layer: int, rows: int, anywhere: bool = False) -> None:
        """Note that `layer` left out `rows` rows, of the scale that runs or with `anywhere` of all so far."""
        self._become_known()
        self.dropped[layer] = self.dropped.get(layer, 0) + rows
        begun = self._begun.get(layer)
        place = None if anywhere or not begun else begun[-1]
        self._left_out.setdefault(layer, []).append((place, rows))

    def begin(self, layers: Iterable[int], start: int) -> None:
        """Note that the caches of `layers` are about to be written from row `start` on, as traced.

        Rows left out from there on lack no more: a cache may be scratch memory of one scale.

        Raises:
            GraphError: a cache lacks rows, and it is not certain whether they are among those replaced.
        """
        for layer in layers:
            begun = self._begun.setdefault(layer, [])
            if begun and start <= begun[-1]:
                if self._left_out.get(layer):
                    self._replace(layer, start, certain=start == 0 or start in begun)
                begun[:] = [place for place in begun if place < start]
            begun.append(start)

    def _replace(self, layer: int, start: int, certain: bool) -> None:
        left_out = self._left_out.pop(layer)
        if not certain or (start > 0 and any(place is None for place, _ in left_out)):
            raise GraphError(
                f"layer {layer} writes its cache at row {start}, over rows of earlier scales of which some "
                "are missing: expected the row behind them, or where one of those scales began"
            )
        stay: list[tuple[int | None, int]] = [
            (place, rows) for place, rows in left_out if place is not None and place < start
        ]
        self.dropped.pop(layer)
        if stay:
            self._left_out[layer] = stay
            self.dropped[layer] = sum(rows for _, rows in stay)

    def suspect(self, layer: int) -> None:
        """Note that `layer` may have left out rows: its graph decides, and only the device knows."""
        self._become_known()
        self._uncertain.add(layer)

    def _become_known(self) -> None:
        if not any(each is self for each in self._known):
            self._known.append(self)

    @property
    def short(self) -> set[int]:
        """The layers that left out rows, or may have."""
        return {*self.dropped, *self._uncertain}

    def overlapping(self, cache: Tensor) -> set[int]:
        """The layers whose caches lack rows and may lie in the memory of this one.

        Caches may be views of one allocation, which lie apart.
        """
        held = ((layer, self._held.get(layer, ())) for layer in self.short)
        return {layer for layer, caches in held if any(may_overlap(cache, each) for each in caches)}

    def owners(self) -> dict[int, set[int]]:
        """The layers whose caches lack rows, by the memory of the cache."""
        found: dict[int, set[int]] = {}
        if not self.dropped and not self._uncertain:
            return found
        for layer in self.short:
            for memory in storages_of(self._held.get(layer, ())):
                found.setdefault(memory, set()).add(layer)
        return found


def may_be_caches(arguments: Sequence[Any]) -> list[int]:
    """Positions of the tensors that are no parameters."""
    return [
        at
        for at, value in enumerate(arguments)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    ]


def refuse_short_caches(
    own: ShortCaches,
    others: Iterable[ShortCaches],
    inputs: Mapping[int, set[int]],
    arguments: Sequence[Any],
    positions: Sequence[int] | None = None,
) -> None:
    """Refuse to run a graph on caches that lack rows, unless it is their layers' own.

    Args:
        own: the caches of the model that is about to run.
        others: those of other models in the same generation that lack rows; `own` may be among them.
        inputs: positions of the arguments that are caches of layers with gates, and those layers.
        arguments: of the graph.
        positions: what `may_be_caches` says of the arguments, if the caller knows.

    Raises:
        GraphError: one of the arguments lacks rows and something else than its layer's gates would read it,
            or a layer that left out rows gets another cache than the one it wrote.
    """
    owners = own.owners()
    foreign = {memory for each in others if each is not own for memory in each.owners()}
    if not owners and not foreign:
        return
    short, none = own.short, frozenset[int]()
    if positions is None:
        positions = may_be_caches(arguments)
    for at, memory in zip(positions, storages_of([arguments[at] for at in positions]), strict=True):
        layers, readers = owners.get(memory, none), inputs.get(at, none)
        if layers and layers != readers:
            layers = own.overlapping(arguments[at])
        if layers == readers and memory not in foreign:
            continue
        if memory in foreign or not layers <= readers:
            raise GraphError(
                f"input {at} is a cache that lacks the rows of pruned tokens: expected to be read by its own "
                "layer, which this graph cannot prune; nearest valid: keep ratios of 1 up to this scale"
            )
        lost = (readers & short) - layers
        if lost:
            raise GraphError(
                f"input {at} is not the cache that layer {min(lost)} wrote at the scale before, which lacks "
                "the rows of pruned tokens: expected that tensor itself, not a copy or another"
            )
