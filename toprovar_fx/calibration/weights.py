"""Whose weights a step runs with.

Parameters are inputs of the graph: one program may serve several models, or a model that changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

from torch import Tensor, fx, nn

from .._torch_private import versions_of
from ..errors import ProfileError
from ..runtime.recorded_inputs import taking
from .identity import model_identity


class Weights:
    """The parameters that a step ran with, as they were then.

    What is written through `parameter.data` leaves no trace, and is taken for what was there before.

    Args:
        parameters: in the order of the step's inputs.
        layers: of the model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], layers: int) -> None:
        self._parameters = list(map(weakref.ref, parameters))
        self._states = _states(parameters)
        self._layers = layers
        self._identity: str | None = None

    def are(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether these are the parameters, and nobody wrote to them or gave them other memory since."""
        # Without a line of Python for each: there are hundreds, and the card runs a small scale meanwhile.
        return _states(parameters) == self._states and all(
            map(is_, parameters, [ref() for ref in self._parameters])
        )

    def identity(self) -> str:
        """Their identity; read from the device once.

        Raises:
            ProfileError: they are not there any more, or are others by now.
        """
        if self._identity is None:
            alive = [parameter for parameter in (ref() for ref in self._parameters) if parameter is not None]
            if len(alive) < len(self._parameters):
                raise ProfileError("the model is gone: expected its generations to be added while it exists")
            if not self.are(alive):
                raise ProfileError(
                    "the model's weights changed after this generation: expected it to be added before"
                )
            self._identity = model_identity(alive, self._layers)
        return self._identity


class KnownWeights:
    """The parameters that a step ran with last.

    Args:
        graph: of the step; holds the parameters where they are no inputs.
        layers: of the model.
    """

    def __init__(self, graph: fx.GraphModule, layers: int) -> None:
        self._graph, self._layers = graph, layers
        self._latest: Weights | None = None
        self._take: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None

    def recognise(self, arguments: Sequence[Any]) -> Weights:
        """Those among the arguments of the step."""
        if self._take is None:
            self._take = taking([at for at, value in enumerate(arguments) if isinstance(value, nn.Parameter)])
        given = self._take(arguments) or tuple(self._graph.parameters())
        if self._latest is None or not self._latest.are(given):
            self._latest = Weights(given, self._layers)
        return self._latest


def _states(parameters: Sequence[nn.Parameter]) -> tuple[list[int | None], list[int]]:
    """Versions and addresses: others once somebody writes to one, or gives it other memory (`p.data = x`)."""
    return versions_of(parameters), list(map(Tensor.data_ptr, parameters))
