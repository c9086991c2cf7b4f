"""What is known of a block graph: the record that the analysis fills and the passes read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from .attention import AttentionCall
from .caches import CacheRead, CacheWrite
from .flex import ScoreMod
from .reasons import Reason, Unsupported
from .shapes import Size
from .transfers import Axes, Transfer


@dataclass
class BlockFacts:
    """Facts about a block graph whose first placeholder is the hidden state [R, L, C].

    Attributes:
        length: the token count L.
        axes: batch and token axis of every value with one row per token.
        transfers: for every such node, what its operator does with the rows.
        attention: the self-attention; None in a sublayer without one.
        writes, reads: cache accesses.
        hidden, exit: the entering and the leaving hidden state.
        keyed: batch and key axis of every value with one row per attended key: reads of a cache and what is
            computed of them, and scores (which are in `axes` too); not keys that are tokens of this scale.
        operands: where operands with tokens pair with nothing by position (keys, values), those that do pair
            with the result's rows.
        key_tables: untagged operands with one row per key, as (operand, its dimension), by node; none where
            the node counts the keys by itself.
        score_mods: changes of scores by what they are and where they stand, by FlexAttention node.
        unread: `baddbmm` nodes whose summand counts by its shape alone.
    """

    length: Size
    hidden: fx.Node
    exit: fx.Node
    attention: AttentionCall | None
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    transfers: dict[fx.Node, Transfer] = field(default_factory=dict)
    writes: list[CacheWrite] = field(default_factory=list)
    reads: list[CacheRead] = field(default_factory=list)
    keyed: dict[fx.Node, Axes] = field(default_factory=dict)
    operands: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    key_tables: dict[fx.Node, tuple[tuple[fx.Node, int], ...]] = field(default_factory=dict)
    score_mods: dict[fx.Node, ScoreMod] = field(default_factory=dict)
    unread: set[fx.Node] = field(default_factory=set)

    def note(self, node: fx.Node, result: Transfer, operands: tuple[fx.Node, ...] | None = None) -> None:
        """Write down a node with token rows; `operands` are those whose rows the result's rows come from."""
        for operand, _ in result.tables:
            if operand in self.axes or operand in self.keyed:
                raise Unsupported(Reason.TOKEN_MIXING, node, "a cached value is used outside attention")
        self.axes[node] = result.axes
        self.transfers[node] = result
        if operands is not None:
            self.operands[node] = operands

    def add_key_tables(self, node: fx.Node, tables: Iterable[tuple[fx.Node, int]]) -> None:
        """Write down operands of a node that pair with the keys by position."""
        found = tuple(tables)
        for operand, _ in found:
            if operand in self.axes or operand in self.keyed:
                raise Unsupported(Reason.TOKEN_MIXING, node, "tokens are paired with keys by position")
        if found:
            self.key_tables[node] = found

    @property
    def position_of_keys(self) -> fx.Node | None:
        """A node at which cached keys pair by position with something: all of them must stay in the cache."""
        if self.attention is None or self.attention.key in self.axes:
            return None
        return next(iter(self.key_tables), None)
