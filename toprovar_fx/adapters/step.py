"""The scale step of an accelerated model: all blocks in one function, compiled as a whole."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from .._torch_private import TRACING_FAILURES, compile_apart
from ..backend import toprovar
from ..errors import ToProVARError
from ..options import Options

# Scale 0 and all others, each again where batch rows, text or resolution become symbolic: about six graphs.
_RECOMPILE_LIMIT = 64


def shadow(block: nn.Module, **parts: nn.Module) -> nn.Module:
    """A second view of a block: the same parameters and submodules, but for those named in `parts`.

    Hooks on the block itself do not run with it; those on its submodules do.
    """
    view = copy.copy(block)
    attributes = {name: value for name, value in vars(block).items() if name != "forward"}
    attributes["_modules"] = {**block._modules, **parts}
    for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
        attributes[name] = OrderedDict()
    vars(view).clear()
    vars(view).update(attributes)
    return view


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
        except TRACING_FAILURES as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, ToProVARError):
                raise cause from None
            if self._options.on_error == "raise":
                raise
            self.failure = str(error).strip().splitlines()[0]
            warnings.warn(
                f"toprovar: the scale step of {self._model} could not be compiled and runs as written, "
                f"unpruned: {self.failure}",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._eager(*arguments)
