"""The forms in which models keep keys and values, each read as one kind of write.

| form | what it says |
|---|---|
| `cache[:, :, a:b] = rows`, `cache[:, :, a:b].copy_(rows)`, `cache.narrow(2, a, n).copy_(rows)` | in place |
| `cache.index_copy_(2, index, rows)`, `cache[:, :, index] = rows`, `index_put_`, `scatter_` | in place, where
`index` is counted by the graph |
| `cache.copy_(torch.slice_scatter(cache, rows, 2, a, b))` | in place |
| `new = torch.slice_scatter(cache, rows, 2, a, b)`, `torch.index_copy`, `torch.scatter` | a new cache |
| `new = torch.cat((cache, rows), 2)` | a new cache that grows |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .index_ranges import Term, index_range
from .operators import argument, full_index, leading_numbers, operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, is_tensor, same, shape_of, size_of

_JOINS = frozenset({"cat", "concat", "concatenate"})
_VIEWS = frozenset({"getitem", "narrow"})


@dataclass(frozen=True)
class CacheForm:
    """One write of the scale's rows into a cache, in whatever form.

    Attributes:
        node: the node that writes.
        cache: the value as it was before, an input of the graph or a numbered part of one.
        rows: what is written.
        axis: dimension of the rows.
        start: ints and int-valued nodes whose sum is the first row; None: behind all that are there (`cat`).
        part: numbers by which `cache` is indexed before it is written, as in `cache[0, layer, :, :, a:b]`.
        new: whether the result is a new tensor, the cache itself staying as it is.
    """

    node: fx.Node
    cache: fx.Node
    rows: fx.Node
    axis: int
    start: tuple[Term, ...] | None
    part: tuple[int, ...] = ()
    new: bool = False


def read_form(node: fx.Node, length: Size) -> CacheForm | None:
    """The cache write that `node` is, or None for anything else.

    Raises:
        Unsupported: rows of the scale are written to an input of the graph, at places that are not known.
    """
    if node.op not in ("call_function", "call_method"):
        return None
    form = _read(node, operator_name(node), length)
    if form is not None and _is_negative(form.start):
        raise Unsupported(Reason.CACHE_LAYOUT, node, "the rows that are written count from the cache's end")
    return form


def _is_negative(start: tuple[Term, ...] | None) -> bool:
    terms = [term for term in start or () if isinstance(term, int)]
    return len(terms) == len(start or ()) and sum(terms) < 0


def _read(node: fx.Node, name: str, length: Size) -> CacheForm | None:
    if name in _JOINS:
        return _joined(node, length)
    if name == "setitem":
        return _assigned(node, node.args[0], node.args[1], node.args[2], length)
    if name == "copy_":
        return _copied(node, length)
    if name in ("index_copy", "index_copy_", "scatter", "scatter_", "slice_scatter"):
        return _by_operator(node, name, length)
    if name == "index_put_":
        indices = argument(node, 1, "indices")
        if not isinstance(indices, (tuple, list)) or argument(node, 3, "accumulate", False):
            return None
        index = tuple(slice(None) if entry is None else entry for entry in indices)
        return _assigned(node, node.args[0], index, argument(node, 2, "values"), length)
    return None


def _is_input(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder" and is_tensor(value)


def _is_rows(value: object, axis: int, length: Size) -> bool:
    """Whether a value has one row per token of the scale along `axis`."""
    if not isinstance(value, fx.Node) or not is_tensor(value) or value.op == "placeholder":
        return False
    shape = shape_of(value)
    return axis < len(shape) and same(shape[axis], length)


def _joined(node: fx.Node, length: Size) -> CacheForm | None:
    parts = argument(node, 0, "tensors")
    if not isinstance(parts, (tuple, list)) or len(parts) != 2 or not all(map(is_tensor, parts)):
        return None
    axis = argument(node, 1, "dim", 0)
    rank = len(shape_of(node))
    if not isinstance(axis, int) or not any(map(_is_input, parts)):
        return None
    cache, rows = parts
    if not _is_input(cache) or not _is_rows(rows, axis % rank, length):
        return None
    return CacheForm(node, cache, rows, axis % rank, None, new=True)


def _assigned(node: fx.Node, cache: object, index: object, rows: object, length: Size) -> CacheForm | None:
    """`cache[index] = rows`."""
    if not _is_input(cache) or not isinstance(rows, fx.Node) or not is_tensor(rows):
        return None
    assert isinstance(cache, fx.Node)
    entries = full_index(index, len(shape_of(cache)))
    if entries is None:
        return None
    part = leading_numbers(entries, shape_of(cache))
    rest = entries[len(part) :]
    chosen = [at for at, entry in enumerate(rest) if entry != slice(None)]
    if len(chosen) != 1 or any(number < 0 for number in part) or len(shape_of(rows)) != len(rest):
        return None
    axis, entry = chosen[0], rest[chosen[0]]
    if not _is_rows(rows, axis, length):
        return None
    if isinstance(entry, slice):
        first = 0 if entry.start is None else entry.start
        stop, begin = size_of(entry.stop), size_of(first)
        if entry.step is not None or stop is None or begin is None or not same(stop - begin, length):
            return None
        return CacheForm(node, cache, rows, axis, (first,), part)
    counted = index_range(entry)
    if counted is None or len(shape_of(entry)) != 1:  # type: ignore[arg-type]
        raise Unsupported(Reason.CACHE_LAYOUT, node, "the rows that are written are not counted by the graph")
    return CacheForm(node, cache, rows, axis, counted.start, part)


def _copied(node: fx.Node, length: Size) -> CacheForm | None:
    """`view.copy_(rows)`, where the view is a slice of a cache, or all of it."""
    target, rows = node.args[0], argument(node, 1, "src")
    if not isinstance(target, fx.Node):
        return None
    if _is_input(target) and isinstance(rows, fx.Node):
        whole = read_form(rows, length)
        if whole is None or not whole.new or whole.start is None or whole.cache is not target:
            return None
        return CacheForm(node, target, whole.rows, whole.axis, whole.start)
    if operator_name(target) not in _VIEWS or not _is_input(target.args[0]):
        return None
    if operator_name(target) == "getitem":
        return _assigned(node, target.args[0], target.args[1], rows, length)
    axis = argument(target, 1, "dim")
    start, count = argument(target, 2, "start"), size_of(argument(target, 3, "length"))
    if not isinstance(axis, int) or size_of(start) is None or count is None or not same(count, length):
        return None
    axis %= len(shape_of(target))
    if not _is_rows(rows, axis, length):
        return None
    return CacheForm(node, target.args[0], rows, axis, (start,))  # type: ignore[arg-type]


def _by_operator(node: fx.Node, name: str, length: Size) -> CacheForm | None:
    cache = argument(node, 0, "input")
    if not _is_input(cache):
        return None
    assert isinstance(cache, fx.Node)
    new, rank = not name.endswith("_"), len(shape_of(cache))
    if name == "slice_scatter":
        rows, axis = argument(node, 1, "src"), argument(node, 2, "dim", 0)
        start, end = argument(node, 3, "start", 0), argument(node, 4, "end")
        first, last = size_of(start), size_of(end)
        if not isinstance(axis, int) or not _is_rows(rows, axis % rank, length):
            return None
        if argument(node, 5, "step", 1) != 1 or first is None or last is None:
            return None
        if not same(last - first, length):
            return None
        return CacheForm(node, cache, rows, axis % rank, (start,), new=True)  # type: ignore[arg-type]
    axis, index = argument(node, 1, "dim"), argument(node, 2, "index")
    rows = argument(node, 3, "src" if name.startswith("scatter") else "source")
    if not isinstance(axis, int) or not _is_rows(rows, axis % rank, length) or "reduce" in node.kwargs:
        return None
    axis %= rank
    counted = index_range(index)
    along = axis if name.startswith("scatter") else 0
    if counted is None or counted.axis != along:
        raise Unsupported(Reason.CACHE_LAYOUT, node, "the rows that are written are not counted by the graph")
    assert isinstance(index, fx.Node) and isinstance(rows, fx.Node)
    if name.startswith("scatter") and not _equal_shapes(index, rows):
        raise Unsupported(Reason.CACHE_LAYOUT, node, "the index covers a part of the rows")
    return CacheForm(node, cache, rows, axis, counted.start, new=new)


def _equal_shapes(left: fx.Node, right: fx.Node) -> bool:
    first, second = shape_of(left), shape_of(right)
    return len(first) == len(second) and all(map(same, first, second))
