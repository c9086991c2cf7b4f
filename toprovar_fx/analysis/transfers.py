"""Where values carry batch rows and tokens, and what an operator does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import fx

from .reasons import Reason, Unsupported
from .shapes import Size, shape_of


@dataclass(frozen=True)
class Axes:
    """Where a value has its batch rows and its tokens (dimensions counted from the front).

    Attributes:
        batch, token: the dimensions.
        spread: entries of the batch dimension per batch row: H where rows and heads are merged ([R H, L, E]).
    """

    batch: int
    token: int
    spread: int = 1

    def shifted(self, by: int) -> Axes:
        """Both axes moved by `by` dimensions."""
        return replace(self, batch=self.batch + by, token=self.token + by)

    def moved(self, place: Callable[[int], int]) -> Axes:
        """Both axes at the places that a function gives them."""
        return replace(self, batch=place(self.batch), token=place(self.token))


@dataclass(frozen=True)
class Transfer:
    """What an operator does with token rows.

    Attributes:
        axes: where the result (each element of it, for a bundle such as `chunk`) has its rows.
        tables: untagged operands with one row per token, as (operand, its dimension): they pair row i with
            token i by position and must be gathered with the same index as the tokens.
        frame: axes that the tables are aligned with from the right, and the rank that these count in; None
            where they are those of the result.
    """

    axes: Axes
    tables: tuple[tuple[fx.Node, int], ...] = ()
    frame: tuple[Axes, int] | None = None


Tagged = Mapping[fx.Node, Axes]
Rule = Callable[[fx.Node, Tagged, Size], Transfer]


def main_axes(node: fx.Node, tagged: Tagged) -> Axes:
    """Axes of the first operand, the only one that may carry tokens."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node) or first not in tagged:
        raise Unsupported(
            Reason.UNKNOWN_OPERATOR, node, "tokens enter through another operand than the first"
        )
    if any(operand in tagged for operand in node.all_input_nodes if operand is not first):
        raise Unsupported(Reason.TOKEN_MIXING, node, "two operands carry tokens")
    return tagged[first]


def input_shape(node: fx.Node) -> tuple[Size, ...]:
    """Shape of the first operand."""
    first = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(first, fx.Node)
    return shape_of(first)
