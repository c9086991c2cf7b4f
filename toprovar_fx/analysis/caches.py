"""Preallocated key/value caches: where a block writes the scale's tokens and reads all tokens so far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx

from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, same, shape_of, size_of
from .transfers import Axes


@dataclass(frozen=True)
class CacheWrite:
    """`cache[..., start:end, ...] = rows`, with one row per token along `axis`."""

    node: fx.Node
    cache: fx.Node
    rows: fx.Node
    axis: int
    start: object
    end: object


@dataclass(frozen=True)
class CacheRead:
    """`cache[..., :end, ...]`, all rows that the cache holds after this scale."""

    node: fx.Node
    cache: fx.Node
    axis: int
    end: object


def written_caches(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Placeholders that the graph writes by `cache[index] = rows`, with the writing nodes in order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if (
            operator_name(node) == "setitem"
            and isinstance(node.args[0], fx.Node)
            and node.args[0].op == "placeholder"
        ):
            found.setdefault(node.args[0], []).append(node)
    return found


def refuse_shared(graph: fx.Graph, members: Collection[fx.Node]) -> None:
    """Refuse a block (its nodes are `members`) whose cache something outside it uses too.

    Pruning shortens the cache of one layer; whoever else reads it still counts its rows as traced.
    """
    for cache, writes in written_caches(graph).items():
        if any(write in members for write in writes):
            for user in cache.users:
                if user not in members:
                    raise Unsupported(Reason.SHARED_STATE, user, f"it uses {cache.name}")


def read_write(node: fx.Node, axes: Axes, length: Size) -> CacheWrite:
    """Understand one `setitem` whose rows carry tokens on `axes.token`, or refuse it."""
    cache, index, rows = node.args
    assert isinstance(cache, fx.Node)
    if not isinstance(rows, fx.Node):
        raise Unsupported(Reason.CACHE_WRITE, node, "the written value is a constant")
    axis, entry = _only_slice(node, index)
    if len(shape_of(rows)) != len(shape_of(cache)) or axes.token != axis:
        raise Unsupported(Reason.CACHE_WRITE, node, "the tokens are not on the sliced axis")
    start, end = (0 if entry.start is None else entry.start), entry.stop
    first, last = size_of(start), size_of(end)
    if entry.step is not None or first is None or last is None or not same(last - first, length):
        raise Unsupported(Reason.CACHE_WRITE, node, "the slice does not span the scale's tokens")
    return CacheWrite(node, cache, rows, axis, start, end)


def read_read(node: fx.Node, write: CacheWrite) -> CacheRead:
    """Understand one `getitem` of a cache that was written before, or refuse it."""
    if operator_name(node) != "getitem":
        raise Unsupported(Reason.CACHE_WRITE, node, f"the written cache is used by {operator_name(node)}")
    axis, entry = _only_slice(node, node.args[1])
    end, expected = size_of(entry.stop), size_of(write.end)
    if (
        axis != write.axis
        or entry.start not in (None, 0)
        or entry.step is not None
        or end is None
        or expected is None
    ):
        raise Unsupported(Reason.CACHE_WRITE, node, "the read is not a prefix of the cache")
    if not same(end, expected):
        raise Unsupported(Reason.CACHE_WRITE, node, "the read ends elsewhere than the write")
    return CacheRead(node, write.cache, axis, entry.stop)


def _only_slice(node: fx.Node, index: object) -> tuple[int, slice]:
    entries = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(entry, slice) for entry in entries):
        raise Unsupported(Reason.CACHE_WRITE, node, "the cache is indexed by something else than slices")
    chosen = [at for at, entry in enumerate(entries) if entry != slice(None)]
    if len(chosen) != 1:
        raise Unsupported(Reason.CACHE_WRITE, node, "more or less than one axis is sliced")
    return chosen[0], entries[chosen[0]]
