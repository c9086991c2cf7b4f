"""Checked reading of a profile's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ProfileError

_NAMES: Mapping[type, str] = {
    str: "text",
    int: "an integer",
    float: "a finite number",
    dict: "an object",
    list: "a list",
}


class EntryReader:
    """Reads entries by dotted names; whatever is not as expected is a `ProfileError` that names the entry.

    Args:
        name: what messages call the profile.
        document: the JSON value.
    """

    def __init__(self, name: str, document: object) -> None:
        self.name, self.document = name, document

    def get(self, entry: str, kind: type, *, optional: bool = False, **default: object) -> Any:
        """An entry of a type; `optional`: or null; `default`: what a missing one is."""
        value = self.document
        for part in entry.split("."):
            if not isinstance(value, dict) or part not in value:
                if default:
                    return default["default"]
                raise ProfileError(f"profile='{self.name}': the entry {entry} is missing")
            value = value[part]
        return self.checked(entry, value, kind, optional=optional)

    def checked(self, entry: str, value: Any, kind: type, *, optional: bool = False) -> Any:
        """A value, if it is of the type; an integer is a number too, what is not finite is none."""
        if value is None and optional:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not right or (kind is float and not math.isfinite(value)):
            raise ProfileError(
                f"profile='{self.name}': {entry}={str(value)[:40]!r}, expected {_NAMES[kind]}"
                + (" or null" if optional else "")
            )
        return value

    def row(self, entry: str, kind: type, length: int, *, optional: bool = False) -> list[Any]:
        """A list of `length` values."""
        return self._row(entry, self.get(entry, list), kind, length, optional)

    def rows(self, entry: str, kind: type, *, width: int, optional: bool = False) -> list[list[Any]]:
        """A list of any number of lists of `width` values."""
        found = self.get(entry, list)
        return [self._row(f"{entry}[{at}]", row, kind, width, optional) for at, row in enumerate(found)]

    def table(self, entry: str, height: int, width: int) -> tuple[tuple[float | None, ...], ...]:
        """`height` lists of `width` numbers or nulls."""
        found = self.rows(entry, float, width=width, optional=True)
        self._count(entry, found, height)
        return tuple(tuple(row) for row in found)

    def shares(self, entry: str, length: int) -> list[float]:
        """A list of numbers from 0 to 1."""
        found = self.row(entry, float, length)
        for at, value in enumerate(found):
            if not 0 <= value <= 1:
                raise ProfileError(
                    f"profile='{self.name}': {entry}[{at}]={value:g}, expected a number from 0 to 1"
                )
        return found

    def _row(self, entry: str, row: Any, kind: type, length: int, optional: bool) -> list[Any]:
        self.checked(entry, row, list)
        self._count(entry, row, length)
        return [
            self.checked(f"{entry}[{at}]", value, kind, optional=optional) for at, value in enumerate(row)
        ]

    def _count(self, entry: str, row: Sequence[Any], length: int) -> None:
        if len(row) != length:
            raise ProfileError(f"profile='{self.name}': {entry} has {len(row)} values, expected {length}")
