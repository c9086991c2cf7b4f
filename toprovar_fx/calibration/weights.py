"""Whose weights a step runs with.

Parameters are inputs of the graph: one program may serve several models, or a model that changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

from torch import fx, nn

from .._torch_private import versions_of
from ..errors import ProfileError
from ..runtime.recorded_inputs import taking
from .identity import model_identity


class KnownWeights:
    """The parameters that a step ran with last.

    Args:
        graph: of the step; holds the parameters where they are no inputs.
        layers: of the model.
    """

    def __init__(self, graph: fx.GraphModule, layers: int) -> None:
        self._graph, self._layers = graph, layers
        self._known: list[weakref.ref[nn.Parameter]] = []
        self._versions: list[int | None] = []
        self._take: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None
        self._identity: str | None = None

    def recognise(self, arguments: Sequence[Any]) -> None:
        """Note those among the arguments of the step; their identity is told anew if they are others."""
        if self._take is None:
            self._take = taking([at for at, value in enumerate(arguments) if isinstance(value, nn.Parameter)])
        given = self._take(arguments) or tuple(self._graph.parameters())
        # Without a line of Python for each: there are hundreds, and the card runs a small scale meanwhile.
        versions = versions_of(given)
        if versions == self._versions and all(map(is_, given, [ref() for ref in self._known])):
            return
        self._known, self._versions, self._identity = list(map(weakref.ref, given)), versions, None

    def identity(self) -> str:
        """Identity of the weights that were recognised last; read from the device once.

        Raises:
            ProfileError: they are not there any more.
        """
        if self._identity is None:
            alive = [parameter for parameter in (ref() for ref in self._known) if parameter is not None]
            if len(alive) < len(self._known):
                raise ProfileError("the model is gone: expected its generations to be added while it exists")
            self._identity = model_identity(alive, self._layers)
        return self._identity
