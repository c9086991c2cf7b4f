"""Replaced attributes of single objects, and their undo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..errors import AdapterError

_ABSENT = object()


class Override:
    """A function in place of a method of one object.

    A copy of the object (`copy.deepcopy`, `pickle`) gets the method of its class back: it is not accelerated.

    Args:
        owner: the object.
        name: of the method.
        function: is called instead; `__wrapped__` is the method.
    """

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, getattr(owner, name))
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function that took the method's place."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._name)


class Overrides:
    """Attributes that were replaced, in order, so that `undo` can put every one back."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, object, object]] = []

    def method(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Replace a method of `owner` by `function`."""
        self.attribute(owner, name, Override(owner, name, function))

    def attribute(self, owner: Any, name: str, value: object) -> None:
        """Replace an attribute of `owner`."""
        self._done.append((owner, name, vars(owner).get(name, _ABSENT), value))
        vars(owner)[name] = value

    def undo(self) -> None:
        """Put everything back, last first.

        Raises:
            AdapterError: somebody else replaced an attribute since; nothing is put back then.
        """
        for owner, name, _, value in self._done:
            if vars(owner).get(name, _ABSENT) is not value:
                raise AdapterError(
                    f"{type(owner).__name__}.{name} was replaced after accelerate(): expected the value that "
                    "accelerate() set; undo the other replacement first"
                )
        for owner, name, before, _ in reversed(self._done):
            if before is _ABSENT:
                del vars(owner)[name]
            else:
                vars(owner)[name] = before
        self._done.clear()
