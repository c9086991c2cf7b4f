"""What a rewrite does to a block's rows, and the rewritten block."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import fx


class GatherAt(Enum):
    """Where rows are dropped; the value says what is then not computed for pruned tokens."""

    BLOCK_INPUT = "everything, keys and values included"
    QUERY = "attention output and all after it; keys and values are computed for all tokens"
    ATTENTION_OUTPUT = "cross-attention and feed-forward; self-attention runs whole"


@dataclass(frozen=True)
class BlockArm:
    """A rewritten block graph.

    Attributes:
        graph: inputs are the selected inputs of the block, then `offset` (if the block has a cache), then
            `keep` [R, K] int64 (if rows are gathered; or K and B where the graph selects them itself), then
            `restored` [R, L, C] (if asked for). Outputs: the hidden state [R, L, C]; the entropy [R, L]
            float32 in nats (if asked for); the keep set [R, K] (if the graph selects it).
        select: positions among the block's own inputs of those that the graph still uses.
        start: position, among the block's own inputs, of the first cache row of this scale; an int constant
            as a one-element tuple; None without a cache.
    """

    graph: fx.GraphModule
    select: tuple[int, ...]
    start: int | tuple[int] | None


@dataclass(frozen=True)
class RowPlan:
    """What to do with a block's rows.

    Attributes:
        gather_at: where to drop rows, or None to keep all.
        restored: whether pruned rows get an update passed in (`hidden + restored`) instead of nothing.
        entropy: add the attention entropy of every query as an output.
        scale_keys: entropy over this scale's keys only instead of all cached ones.
        select: None, or the rule ("shared", "cond", "per_row") and the sign (keep low) by which the graph
            itself selects the tokens; by the layer's own entropies with `GatherAt.ATTENTION_OUTPUT` (and
            `entropy`), else by `ranking`.
        ranking: with `select`, what ranks the tokens before rows are dropped: "given", an input `ranking`
            [R, L] float32, or "frequency", read off the hidden state.
        queries: add the self-attention's queries, [R, H, L or K, E], as the last output.
    """

    gather_at: GatherAt | None = None
    restored: bool = False
    entropy: bool = False
    scale_keys: bool = False
    select: tuple[str, bool] | None = None
    ranking: str | None = None
    queries: bool = False

    def __str__(self) -> str:
        rows = "all tokens" if self.gather_at is None else f"K tokens from {self.gather_at.name.lower()} on"
        return rows + ("" if not self.entropy else ", entropies")
