"""Regional compilation that can be given up: a failing compiler must never end a training run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])


class Compilation:
    """Switch between compiled and eager versions of the wrapped callables.

    Args:
        enabled: False makes every wrapped callable eager from the start.
        backend: name of the `torch.compile` backend.
    """

    def __init__(self, enabled: bool, backend: str = "inductor") -> None:
        self.enabled = enabled
        self._backend = backend

    def wrap(self, function: Function) -> Function:
        """Return a callable that runs `function` compiled for static shapes while that is enabled."""
        compiled = torch.compile(function, backend=self._backend, dynamic=False)

        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled(*args, **kwargs) if self.enabled else function(*args, **kwargs)

        return call  # type: ignore[return-value]

    def wrap_pure(self, function: Function) -> Function:
        """Like `wrap`, for a function without gradient: it falls back alone when its compiled form fails."""
        compiled = self.wrap(function)
        working = True

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal working
            if working:
                try:
                    return compiled(*args, **kwargs)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if not self.enabled:
                        raise
                    working = False
                    _report(error)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    def wrap_forwards(self, modules: Iterable[nn.Module]) -> None:
        """Compile the forward of modules in place; equal ones share one function, hence its graphs."""
        shared: dict[type[nn.Module], Callable[..., Any]] = {}
        for module in modules:
            kind = type(module)
            if kind not in shared:
                shared[kind] = self.wrap(kind.forward)
            module.forward = partial(shared[kind], module)

    def give_up(self, reason: BaseException) -> bool:
        """Go on eagerly after a failure; False if all was eager already, so that the failure is real."""
        if not self.enabled:
            return False
        self.enabled = False
        _report(reason)
        return True


def _report(reason: BaseException) -> None:
    message = f"{type(reason).__name__}: {' '.join(str(reason).split())[:400]}"
    print(f"compilation given up, eager from here: {message}", file=sys.stderr, flush=True)
