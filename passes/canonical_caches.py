"""Rewrites key/value caches of any known form to the one form that the other passes see.

The canonical cache is a buffer that a block writes by slice and reads from the start:

    cache[:, :, start:end] = rows            (the rows of this scale, at the end of those before)
    known = cache[:, :, :end]                (all rows so far)

A cache that grows, `new = torch.cat((old, rows), 2)`, becomes a longer buffer made *before* the block:

    cache = pad(old, rows of this scale)     (outside the block; leaves the graph in the place of `new`)
    cache[:, :, start:end] = rows
    known = cache[:, :, :end]

so a block writes it as any other. Its length stays that of the tokens of all scales, whatever was pruned: a
layer that computes fewer rows leaves the last ones zero, unread. Guards on the length, and positions that a
model derives from it, hold as traced. A functional write (`torch.slice_scatter`) becomes a copy made before
the block, and one number of a stacked cache (`cache[0, layer]`) a view made before it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import sympy
import torch
from torch import fx

from ..analysis.attention import attention_calls
from ..analysis.cache_forms import CacheForm, read_form
from ..analysis.caches import CACHE_HOLDER
from ..analysis.operators import full_index, leading_numbers, one_slice, operator_name
from ..analysis.reasons import Reason, Unsupported
from ..analysis.shapes import Size, as_size, is_tensor, same, shape_of, size_of, value_of
from .step import copy_graph


def canonical_caches(graph: fx.Graph) -> fx.Graph:
    """A copy of a traced graph with its caches in the canonical form; the graph itself if they all are.

    Requires: a graph from Dynamo. Ensures: the same values, bit for bit; buffers that leave the graph are as
        long as the tensors that left before.

    Raises:
        Unsupported: rows of the scale go into a cache at places that are not known, or into one whose type
            changes.
    """
    calls = attention_calls(graph)
    counts = sorted((call.query_length for call in calls), key=lambda count: count.is_Integer)
    length = counts[0] if counts else sympy.Integer(1)
    # A scale of one token is not rewritten.
    if length == 1 or not any(_is_other_form(node, length) for node in graph.nodes):
        return graph
    rewriter = _Rewriter(copy_graph(graph), length)
    rewriter.run()
    return rewriter.graph


def _is_other_form(node: fx.Node, length: Size) -> bool:
    form = read_form(node, length)
    return form is not None and not _is_canonical(node)


def _is_canonical(node: fx.Node) -> bool:
    entries = node.args[1] if operator_name(node) == "setitem" else None
    return isinstance(entries, tuple) and all(isinstance(entry, slice) for entry in entries)


class _Rewriter:
    def __init__(self, graph: fx.Graph, length: Size) -> None:
        self.graph, self.length = graph, length
        self.leaving = set(graph.output_node().all_input_nodes)
        self.parts: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}
        # Where values that the blocks need and do not compute are made: behind the last input.
        self.top = next(node for node in graph.nodes if node.op != "placeholder")

    def run(self) -> None:
        forms = [(node, read_form(node, self.length)) for node in self.graph.nodes]
        for node, form in forms:
            if form is None or _is_canonical(node) or (form.new and node not in self.leaving):
                continue
            holder = self._buffer(node, form) if form.new else self._holder(form)
            if node.users and operator_name(node) == "copy_":
                raise Unsupported(Reason.CACHE_LAYOUT, node, "the written slice is used")
            start = self._start(node, form)
            end = self._sum(node, (start, self._count()))
            with self.graph.inserting_before(node):
                index = one_slice(len(shape_of(holder)), form.axis, slice(start, end))
                self._call(node, operator.setitem, (holder, index, form.rows), None)
            self._replace(node, form, holder, end)
        self.graph.eliminate_dead_code(is_impure_node=_is_impure)
        self._number_reads()
        self.graph.lint()

    def _holder(self, form: CacheForm) -> fx.Node:
        """The cache that is written in place: an input, or a numbered part of one."""
        if not form.part:
            return form.cache
        key = form.cache, form.part
        if key not in self.parts:
            value = value_of(form.cache)
            assert isinstance(value, torch.Tensor)
            with self.graph.inserting_before(self.top):
                view = self._call(self.top, operator.getitem, key, value[form.part])
            view.meta[CACHE_HOLDER] = form.cache
            self.parts[key] = view
        return self.parts[key]

    def _buffer(self, node: fx.Node, form: CacheForm) -> fx.Node:
        """What leaves the graph in the place of a new cache."""
        value, before = value_of(node), value_of(form.cache)
        assert isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor)
        if value.dtype != before.dtype:
            raise Unsupported(Reason.CACHE_LAYOUT, node, f"a cache of {before.dtype} becomes {value.dtype}")
        count = self._count()
        with self.graph.inserting_before(node):
            if form.start is None:
                behind = (0, 0) * (value.dim() - 1 - form.axis) + (0, count)
                buffer = self._call(node, torch.nn.functional.pad, (form.cache, behind), value)
            else:
                buffer = self._call(node, torch.clone, (form.cache,), value)
        buffer.meta[CACHE_HOLDER] = form.cache
        return buffer

    def _replace(self, node: fx.Node, form: CacheForm, holder: fx.Node, end: object) -> None:
        """Users of a written cache: outputs get the buffer, everything else the rows so far."""
        read = holder
        if form.start is None:
            with self.graph.inserting_before(node):
                index = one_slice(len(shape_of(holder)), form.axis, slice(None, end))
                read = self._call(node, operator.getitem, (holder, index), value_of(node))
        for user in list(node.users):
            user.replace_input_with(node, holder if user.op == "output" else read)
        self.graph.erase_node(node)

    def _number_reads(self) -> None:
        """Reads of a numbered part, `cache[0, layer, :, :, :end]`, become reads of the view."""
        for node in self.graph.nodes:
            if operator_name(node) != "getitem" or CACHE_HOLDER in node.meta:
                continue
            source = node.args[0]
            entries = full_index(node.args[1], len(shape_of(source))) if is_tensor(source) else None
            part = leading_numbers(entries, shape_of(source)) if entries is not None else ()
            if entries is not None and part and (source, part) in self.parts:
                node.args = (self.parts[source, part], entries[len(part) :])

    # Sizes.

    def _count(self) -> object:
        """L, the rows of this scale."""
        return self._size(self.length, None, 0)

    def _start(self, node: fx.Node, form: CacheForm) -> object:
        if form.start is None:
            return self._size(shape_of(form.cache)[form.axis], form.cache, form.axis)
        return self._sum(node, form.start)

    def _size(self, size: Size, tensor: fx.Node | None, axis: int) -> object:
        """A size as a number or as the value of a node that is known from the start."""
        if size.is_Integer:
            return int(size)
        for node in self.graph.nodes:
            if node is self.top:
                break
            known = size_of(node)
            if known is not None and same(known, size):
                return node
        source, at = (tensor, axis) if tensor is not None else self._has_size(size)
        value = value_of(source)
        assert isinstance(value, torch.Tensor)
        with self.graph.inserting_before(self.top):
            found = self.graph.call_method("size", (source, at))
        found.meta["example_value"] = value.shape[at]
        return found

    def _has_size(self, size: Size) -> tuple[fx.Node, int]:
        for node in self.graph.nodes:
            if node.op == "placeholder" and isinstance(value_of(node), torch.Tensor):
                for at, known in enumerate(shape_of(node)):
                    if same(known, size):
                        return node, at
        raise Unsupported(Reason.NO_TOKEN_AXIS, self.top, "no input has the token count among its sizes")

    def _sum(self, before: fx.Node, terms: Iterable[object]) -> object:
        """The sum of ints and int-valued nodes; a node that holds it already is taken again."""
        total = None
        for term in terms:
            total = term if total is None else self._add(before, total, term)
        return total

    def _add(self, before: fx.Node, left: object, right: object) -> object:
        if isinstance(left, int) and isinstance(right, int):
            return left + right
        value = _number(left) + _number(right)  # type: ignore[operator]
        for node in self.graph.nodes:
            if node is before:
                break
            known = size_of(node)
            if known is not None and same(known, as_size(value)):
                return node
        with self.graph.inserting_before(before):
            return self._call(before, operator.add, (left, right), value)

    def _call(self, like: fx.Node, target: object, args: tuple[object, ...], value: object) -> fx.Node:
        node = self.graph.call_function(target, args)  # type: ignore[arg-type]
        node.meta["example_value"] = value
        if "stack_trace" in like.meta:
            node.meta["stack_trace"] = like.meta["stack_trace"]
        return node


def _number(term: object) -> object:
    return value_of(term) if isinstance(term, fx.Node) else term


# What the rewriting may leave without a user.
_LEFT_OVER = frozenset(
    ["getitem", "narrow", "arange", "unsqueeze", "view", "expand", "slice_scatter", "index_copy", "scatter"]
)


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or operator_name(node) not in _LEFT_OVER
