"""Whose weights a step runs with.

Parameters are inputs of the graph: one program may serve several models, or a model that changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from .._torch_private import versions_of
from ..errors import ProfileError
from .identity import model_identity


class KnownWeights:
    """The parameters that a step ran with last.

    Args:
        graph: of the step; holds the parameters where they are no inputs.
        layers: of the model.
    """

    def __init__(self, graph: fx.GraphModule, layers: int) -> None:
        self._graph, self._layers = graph, layers
        self._known: list[tuple[weakref.ref[nn.Parameter], int | None]] = []
        self._inputs: list[int] | None = None
        self._identity: str | None = None

    def recognise(self, arguments: Sequence[Any]) -> None:
        """Note those among the arguments of the step; their identity is told anew if they are others."""
        if self._inputs is None:
            self._inputs = [at for at, value in enumerate(arguments) if isinstance(value, nn.Parameter)]
        given = [arguments[at] for at in self._inputs] or list(self._graph.parameters())
        states = list(zip(given, versions_of(given), strict=True))
        same = len(self._known) == len(states) and all(
            old == new and before() is now
            for (before, old), (now, new) in zip(self._known, states, strict=True)
        )
        if not same:
            self._known, self._identity = [(weakref.ref(value), state) for value, state in states], None

    def identity(self) -> str:
        """Identity of the weights that were recognised last; read from the device once.

        Raises:
            ProfileError: they are not there any more.
        """
        if self._identity is None:
            alive = [parameter for parameter in (ref() for ref, _ in self._known) if parameter is not None]
            if len(alive) < len(self._known):
                raise ProfileError("the model is gone: expected its generations to be added while it exists")
            self._identity = model_identity(alive, self._layers)
        return self._identity
