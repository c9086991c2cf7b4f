"""Key/value caches in their canonical form: where a block writes the scale's tokens and reads all so far.

`passes/canonical_caches.py` brings the other forms to this one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx

from .operators import argument, full_index, operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, same, shape_of, size_of
from .transfers import Axes

# Key of a node's metadata: it is a cache made before the block that writes it, of the input that it names.
CACHE_HOLDER = "toprovar_cache"


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
    """Caches that the graph writes by `cache[index] = rows`, with the writing nodes in order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if operator_name(node) == "setitem" and isinstance(node.args[0], fx.Node) and is_holder(node.args[0]):
            found.setdefault(node.args[0], []).append(node)
    return found


def is_holder(node: fx.Node) -> bool:
    """Whether a node is memory that a block may write: an input, or a buffer or view made for the purpose."""
    return node.op == "placeholder" or CACHE_HOLDER in node.meta


def refuse_shared(graph: fx.Graph, members: Collection[fx.Node]) -> None:
    """Refuse a block (its nodes are `members`) whose cache something outside it uses too.

    Pruning shortens the cache of one layer; whoever else reads it still counts its rows as traced. The cache
    may leave the graph, and its size may be asked for.
    """
    for cache, writes in written_caches(graph).items():
        if any(write in members for write in writes):
            for user in _other_users(cache):
                if user not in members and user.op != "output" and operator_name(user) != "size":
                    raise Unsupported(Reason.SHARED_STATE, user, f"it uses {cache.name}")


def _other_users(cache: fx.Node) -> list[fx.Node]:
    """Whoever uses a cache, or the input that it was made of and whose rows are counted alike."""
    return [*cache.users, *users_beside(cache)]


def users_beside(cache: fx.Node) -> list[fx.Node]:
    """Whoever else uses what a cache was made of, but for numbered parts of it that lie beside this one.

    A longer copy has the input for itself.
    """
    if cache.op == "placeholder":
        return []
    base = cache.args[0]
    assert isinstance(base, fx.Node)
    return [user for user in base.users if user is not cache and not _lie_apart(cache, user)]


def _lie_apart(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes are parts of one input with other numbers."""
    if CACHE_HOLDER not in right.meta or {operator_name(left), operator_name(right)} != {"getitem"}:
        return False
    first, second = left.args[1], right.args[1]
    assert isinstance(first, tuple) and isinstance(second, tuple)
    return any(one != other for one, other in zip(first, second, strict=False))


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
    """Understand one read of a cache that was written before (`getitem` or `narrow`), or refuse it."""
    axis, begin, stop = _read_span(node)
    end, expected = size_of(stop), size_of(write.end)
    if axis != write.axis or begin not in (None, 0) or end is None or expected is None:
        raise Unsupported(Reason.CACHE_WRITE, node, "the read is not a prefix of the cache")
    if not same(end, expected):
        raise Unsupported(Reason.CACHE_WRITE, node, "the read ends elsewhere than the write")
    return CacheRead(node, write.cache, axis, stop)


def _read_span(node: fx.Node) -> tuple[int, object, object]:
    """Axis, first row and end of a read."""
    name = operator_name(node)
    if name == "narrow":
        axis, start = argument(node, 1, "dim"), argument(node, 2, "start")
        if isinstance(axis, int) and start == 0:
            return axis % len(shape_of(node)), 0, argument(node, 3, "length")
        raise Unsupported(Reason.CACHE_WRITE, node, "the read is not a prefix of the cache")
    if name != "getitem":
        raise Unsupported(Reason.CACHE_WRITE, node, f"the written cache is used by {name}")
    axis, entry = _only_slice(node, node.args[1])
    if entry.step is not None:
        raise Unsupported(Reason.CACHE_WRITE, node, "the read is not a prefix of the cache")
    return axis, entry.start, entry.stop


def _only_slice(node: fx.Node, index: object) -> tuple[int, slice]:
    cache = node.args[0]
    assert isinstance(cache, fx.Node)
    entries = full_index(index, len(shape_of(cache))) or (None,)
    if not all(isinstance(entry, slice) for entry in entries):
        raise Unsupported(Reason.CACHE_WRITE, node, "the cache is indexed by something else than slices")
    chosen = [at for at, entry in enumerate(entries) if entry != slice(None)]
    if len(chosen) != 1:
        raise Unsupported(Reason.CACHE_WRITE, node, "more or less than one axis is sliced")
    entry = entries[chosen[0]]
    assert isinstance(entry, slice)
    return chosen[0], entry
