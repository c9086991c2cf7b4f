"""Patterns of operators in a graph, written as the code that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..analysis.operators import operator_name


@dataclass(frozen=True)
class Hole:
    """Stands for any argument, or any like `pattern`; elsewhere for the same value, or one computed alike."""

    name: str
    pattern: Any = None


class Call:
    """A call of an operator by its bare name, as a function or a method, with exactly these arguments."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs


Found = dict[str, Any]


def match(pattern: Any, value: Any, found: Found) -> Found | None:
    """What the holes of a pattern stand for, those of `found` included, if `value` is like the pattern."""
    if isinstance(pattern, Hole):
        if pattern.name in found:
            return found if alike(found[pattern.name], value) else None
        inner = found if pattern.pattern is None else match(pattern.pattern, value, found)
        return None if inner is None else {**inner, pattern.name: value}
    parts = list(_pairs(pattern, value))
    if any(part is None for part in parts):
        return None
    if not parts:
        return found if isinstance(pattern, (Call, tuple, list)) or pattern == value else None
    for part in parts:
        assert part is not None
        inner = match(*part, found)
        if inner is None:
            return None
        found = inner
    return found


def alike(first: Any, second: Any) -> bool:
    """Whether two arguments are one, or come from equal calls on the same nodes."""
    if first is second:
        return True
    if isinstance(first, fx.Node) and isinstance(second, fx.Node):
        calls = first.op == second.op and first.op in ("call_function", "call_method")
        if not calls or first.target != second.target:
            return False
        return alike((first.args, first.kwargs), (second.args, second.kwargs))
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, slice) and isinstance(second, slice):
        return alike(_ends(first), _ends(second))
    return type(first) is type(second) and bool(first == second)


def _pairs(pattern: Any, value: Any) -> Iterator[tuple[Any, Any] | None]:
    """The parts of a pattern, each with what has to be like it; None where they cannot be."""
    if isinstance(pattern, Call):
        called = isinstance(value, fx.Node) and value.op in ("call_function", "call_method")
        if not called or operator_name(value) != pattern.name or value.kwargs.keys() != pattern.kwargs.keys():
            yield None
            return
        yield pattern.args, value.args
        yield from ((pattern.kwargs[key], value.kwargs[key]) for key in pattern.kwargs)
    elif isinstance(pattern, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(pattern):
            yield None
            return
        yield from zip(pattern, value, strict=True)
    elif isinstance(pattern, slice):
        yield (_ends(pattern), _ends(value)) if isinstance(value, slice) else None


def _ends(index: slice) -> tuple[Any, Any, Any]:
    return index.start, index.stop, index.step
