"""Which compiled programs were made and called, and in which generations, while somebody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .runtime.generation import Generation, current_generation

if TYPE_CHECKING:
    from .dense_program import DenseProgram
    from .program import StepProgram

# Who watches this thread or task, or None.
WATCHING: ContextVar[Recording | None] = ContextVar("toprovar_recording", default=None)


@dataclass
class Recording:
    """What was seen.

    Attributes:
        calls: programs in the order in which they were first seen, and how often each was called.
        generations: those that a program took part in.
    """

    calls: dict[StepProgram | DenseProgram, int] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)


@contextmanager
def recording() -> Iterator[Recording]:
    """Watch the programs of this thread or task."""
    opened = Recording()
    token = WATCHING.set(opened)
    try:
        yield opened
    finally:
        WATCHING.reset(token)


def is_observed() -> bool:
    """Whether a generation is open or somebody watches, so that calls have to be noted."""
    return WATCHING.get() is not None or current_generation() is not None


def note_compiled(program: Any) -> None:
    """Tell whoever watches of a program that was made."""
    watching = WATCHING.get()
    if watching is not None:
        watching.calls.setdefault(program, 0)


def note_called(program: Any) -> None:
    """Tell whoever watches of a program that runs."""
    watching = WATCHING.get()
    if watching is None:
        return
    watching.calls[program] = watching.calls.get(program, 0) + 1
    running = current_generation()
    if running is not None and all(running is not known for known in watching.generations):
        watching.generations.append(running)
