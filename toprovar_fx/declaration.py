"""What a pass says of itself: its name, what it needs, what it promises, its price and when it acts.

The declarations are read by the pipeline (order and obligations), by `explain` and by docs/passes.md, whose
table is made from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from .registry import Registry

if TYPE_CHECKING:
    from .options import Options

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Pass(Generic[P, R]):
    """A pass; calling it runs it.

    Attributes:
        name: the pass.
        run: what it does.
        requires: passes that must have run before it.
        rewrites, ensures, price, when: in words, a sentence or less each.
        active: whether it may change anything under these options.
    """

    name: str
    run: Callable[P, R]
    requires: tuple[str, ...]
    rewrites: str
    ensures: str
    price: str
    when: str
    active: Callable[[Options], bool]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the pass."""
        return self.run(*args, **kwargs)


def always(options: Options) -> bool:
    """For a pass that acts under all options."""
    return True


def declare(
    *,
    rewrites: str,
    ensures: str,
    price: str,
    when: str,
    requires: tuple[str, ...] = (),
    active: Callable[[Options], bool] = always,
) -> Callable[[Callable[P, R]], Pass[P, R]]:
    """Make a function a `Pass` of the function's name; the arguments are its attributes."""

    def wrap(function: Callable[P, R]) -> Pass[P, R]:
        return Pass(function.__name__, function, requires, rewrites, ensures, price, when, active)

    return wrap


PASSES: Registry[Pass[Any, Any]] = Registry("pass", {})
