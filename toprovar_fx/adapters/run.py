"""What one generation of an accelerated model carries from scale to scale, visible in its thread alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError
from ..runtime.generation import Generation


@dataclass
class Run:
    """One call of the model's generation method.

    Attributes:
        model: whose.
        generation: the backend's state of it.
        arguments: of the call, by name.
        keys, values: buffers per layer, allocated at the first scale.
        last_step: the scale whose step ran last, -1 before the first.
        kept: whatever an adapter computes once per generation.
    """

    model: nn.Module
    generation: Generation
    arguments: dict[str, Any]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    last_step: int = -1
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """The scale that runs."""
        return self.generation.scale

    @property
    def end(self) -> int:
        """Tokens of all scales up to and including this one."""
        return self.generation.schedule.ends[self.scale]

    def begin_scale(self, scale: int) -> bool:
        """Whether the loop goes on with `scale`.

        The loop may be looked over before it starts; a scale begins when the one before has run.
        """
        if scale == self.scale + 1 and scale == self.last_step + 1:
            return self.generation.begin_scale(scale)
        return self.generation.exited_at is None

    def begin_step(self, tokens: int) -> None:
        """Note that the blocks run for the scale's tokens.

        Raises:
            AdapterError: another number of tokens than the schedule says, or a scale that ran already.
        """
        expected = self.generation.schedule.tokens[self.scale] if self.scale >= 0 else 0
        if tokens != expected or self.last_step != self.scale - 1:
            raise AdapterError(
                f"{type(self.model).__name__}: a step of {tokens} tokens, expected the {expected} of scale "
                f"{self.scale} once; the loop over scales differs from upstream's"
            )
        self.last_step = self.scale


_ACTIVE: ContextVar[Run | None] = ContextVar("toprovar_run", default=None)


def active_run(model: nn.Module) -> Run | None:
    """The generation of `model` that runs in this thread or task, or None."""
    run = _ACTIVE.get()
    return run if run is not None and run.model is model else None


@contextmanager
def activate(run: Run) -> Iterator[Run]:
    """Make `run` the active one."""
    token = _ACTIVE.set(run)
    try:
        yield run
    finally:
        _ACTIVE.reset(token)
