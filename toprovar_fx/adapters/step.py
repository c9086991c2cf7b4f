"""The scale step of an accelerated model: all blocks in one function, compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._torch_private import compile_apart, tracing_failures
from ..backend import toprovar
from ..errors import ToProVARError
from ..options import Options
from ..user_line import warn_at_user_line

# Scale 0 and all others, each again where batch rows, text or resolution become symbolic: about six graphs.
_RECOMPILE_LIMIT = 64


class CompiledStep:
    """A step function compiled by the backend; as written where Dynamo cannot take it.

    Args:
        function: hidden states and whatever else, to hidden states.
        options: of the backend.
        model: its name, for messages.
    """

    def __init__(self, function: Callable[..., Any], options: Options, model: str) -> None:
        self._options, self._model = options, model
        self._eager = function
        self._compiled = compile_apart(function, toprovar, options.as_dict(), _RECOMPILE_LIMIT)
        self.failure: str | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the step.

        Raises:
            Exception: the failure of the compilation, with `on_error='raise'` or if an option caused it.
        """
        if self.failure is not None:
            return self._eager(*arguments)
        try:
            return self._compiled(*arguments)
        except tracing_failures() as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, ToProVARError):
                raise cause from None
            if self._options.on_error == "raise":
                raise
            self.failure = str(error).strip().splitlines()[0]
            warn_at_user_line(
                f"toprovar: the scale step of {self._model} could not be compiled and runs as written, "
                f"unpruned: {self.failure}"
            )
            return self._eager(*arguments)
