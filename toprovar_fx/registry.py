"""Named entries that a user can add to: built-in ones are fixed, added ones can be taken out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from .errors import OptionError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for.

    Only names are global here, never settings: an entry acts where `options` names it and nowhere else.

    Args:
        kind: what an entry is, in a word, for messages.
        built_in: entries that cannot be replaced or taken out.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T]) -> None:
        self._kind = kind
        self._built_in = MappingProxyType(dict(built_in))
        self._added: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        """All names, the built-in ones first."""
        return iter((*self._built_in, *self._added))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._added

    def is_built_in(self, name: str) -> bool:
        """Whether `name` came with the package."""
        return name in self._built_in

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name` and return it.

        Raises:
            OptionError: `name` is no identifier, or is taken.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise OptionError(f"{self._kind} {name!r}: expected a Python identifier as its name")
        if name in self:
            advice = "a name of its own" if self.is_built_in(name) else f"unregister_{self._kind} first"
            raise OptionError(f"{self._kind} {name!r} is registered already: expected {advice}")
        self._added[name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Take out a name that a user added; what was compiled with it keeps its entry.

        Raises:
            OptionError: no such name was added.
        """
        if name not in self._added:
            raise OptionError(f"{self._kind} {name!r}: {self._expected(name, self._added)}")
        del self._added[name]

    def get(self, name: object) -> T | None:
        """The entry, or None."""
        return self._built_in.get(name, self._added.get(name))  # type: ignore[call-overload, no-any-return]

    def find(self, option: str, name: object) -> T:
        """The entry that the option `option` names.

        Raises:
            OptionError: there is none; the message lists the names and gives the nearest.
        """
        entry = self.get(name) if isinstance(name, str) else None
        if entry is None:
            shown = " ".join(repr(name).split())[:80]
            raise OptionError(f"{option}={shown}: {self._expected(name, self)}")
        return entry

    def _expected(self, name: object, names: Iterable[str]) -> str:
        known = list(names)
        if not known:
            return f"expected the name of a registered {self._kind}, and none is registered"
        near = nearest(name, known)
        hint = f"; nearest valid: {near!r}" if near else ""
        return f"expected one of {', '.join(map(repr, known))}{hint}"
