"""The programs alive in this process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from .dense_program import DenseProgram
from .options import Options
from .program import StepProgram
from .recording import note_compiled

Program = TypeVar("Program", StepProgram, DenseProgram)
_PROGRAMS: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(program: Program) -> Program:
    """Keep track of a program for `explain`, as long as Dynamo holds it."""
    _PROGRAMS.add(program)
    note_compiled(program)
    return program


def keeps_alive(call: Callable[..., Any], program: DenseProgram) -> bool:
    """Let `program` live as long as the function that Dynamo gets in its place; whether that works."""
    try:
        call.toprovar_program = program  # type: ignore[attr-defined]
    except AttributeError:
        return False
    return True


def programs(options: Options | None = None) -> list[StepProgram | DenseProgram]:
    """Programs alive in this process, those of equal `options` if given."""
    return [program for program in list(_PROGRAMS) if options is None or program.options == options]
