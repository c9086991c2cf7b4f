"""Caches that lack rows: who may read them.

A pruned layer leaves fewer rows in its cache than there were tokens. Its own gates know how many; a graph
that stayed dense, another layer or another model would read the missing rows as keys. Nothing in the tensor
shows it, so the generation remembers which memory lacks rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._torch_private import storage_of
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
        # The tensors are kept: memory that is given back may become that of another tensor.
        self._held: dict[int, list[Tensor]] = {}

    def hold(self, layer: int, caches: Iterable[Tensor]) -> None:
        """Note what `layer` wrote at this scale."""
        self._held[layer] = list(caches)

    def release(self) -> None:
        """Let go of the tensors: no graph of the generation runs any more."""
        self._held.clear()

    def drop(self, layer: int, rows: int) -> None:
        """Note that `layer` left out `rows` rows."""
        self._become_known()
        self.dropped[layer] = self.dropped.get(layer, 0) + rows

    def suspect(self, layer: int) -> None:
        """Note that `layer` may have left out rows: its graph decides, and only the device knows."""
        self._become_known()
        self._uncertain.add(layer)

    def _become_known(self) -> None:
        if not self.dropped and not self._uncertain:
            self._known.append(self)

    @property
    def short(self) -> set[int]:
        """The layers that left out rows, or may have."""
        return {*self.dropped, *self._uncertain}

    def owners(self) -> dict[int, set[int]]:
        """The layers whose caches lack rows, by the memory of the cache."""
        found: dict[int, set[int]] = {}
        if not self.dropped and not self._uncertain:
            return found
        for layer in self.short:
            for cache in self._held.get(layer, ()):
                found.setdefault(storage_of(cache), set()).add(layer)
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
    for at in may_be_caches(arguments) if positions is None else positions:
        memory = storage_of(arguments[at])
        layers, readers = owners.get(memory, set()), inputs.get(at, set())
        if memory in foreign or not layers <= readers:
            raise GraphError(
                f"input {at} is a cache that lacks the rows of pruned tokens: expected to be read by its own "
                "layer, which this graph cannot prune; nearest valid: keep ratios of 1 up to this scale"
            )
        lost = sorted(readers & own.short - layers)
        if lost:
            raise GraphError(
                f"input {at} is not the cache that layer {lost[0]} wrote at the scale before, which lacks "
                "the rows of pruned tokens: expected that tensor itself, not a copy or another"
            )
