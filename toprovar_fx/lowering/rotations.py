"""One kernel for what a cosine attention does between its projection and the attention.

Inductor writes seven: it computes keys and values in the order of the projection's result and copies them
to the cache, whose order is another; `stack` lays the queries out anew, and so attention its result. At the
small scales each of them takes longer to start than to run.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from .._torch_private import graph_to_read
from ..analysis.contexts import is_context
from ..analysis.graph_sizes import spec_of
from ..analysis.operators import operator_name
from ..input_specs import InputSpec
from ..ops.rotated_qkv import KERNEL_DTYPES, has_kernel
from .patterns import Call, Found, Hole, match

_ANGLES = ("cos", "sin")


def _item(bundle: Any, at: int) -> Call:
    return Call("getitem", bundle, at)


def _rotated(x: Any) -> Call:
    """`models.rope.rotate`."""
    cos, sin = Hole("cos"), Hole("sin")
    pairs = Call("unbind", Call("unflatten", x, -1, (-1, 2)), -1)
    even, odd = _item(pairs, 0), _item(pairs, 1)
    first = Call("sub", Call("mul", even, cos), Call("mul", odd, sin))
    second = Call("add", Call("mul", even, sin), Call("mul", odd, cos))
    return Call("to", Call("flatten", Call("stack", (first, second), dim=-1), -2), Hole("dtype"))


def _written(cache: str, rows: Any) -> Call:
    every, own = slice(None), slice(Hole("start"), Hole("end"))
    return Call("setitem", Hole(cache), (every, every, own, every), rows)


def _bias(value: Any) -> Call:
    return Call("view", value, 1, Hole("heads"), 1, -1)


_PROJECTED = Call("linear", Hole("x"), Hole("weight"), None)
_SIZES = (Hole("rows"), Hole("tokens"), 3, Hole("heads"), Hole("width"))
_QKV = Hole("qkv", Call("view", _PROJECTED, *_SIZES))
_PARTS = Call("unbind", Call("permute", _QKV, 2, 0, 3, 1, 4), 0)
_SUM = Call("add", Call("float", _item(_PARTS, 0)), _bias(Hole("q_bias")))
_FACTOR = Call("exp", Call("clamp_max", Call("float", Hole("log_factor")), Hole("max_log_factor")))
QUERY = _rotated(Call("mul", Call("normalize", _SUM, dim=-1), _FACTOR))
KEYS = _written("keys", _rotated(Call("normalize", Call("float", _item(_PARTS, 1)), dim=-1)))
VALUES = _written("values", Call("add", _item(_PARTS, 2), _bias(Call("to", Hole("v_bias"), Hole("dtype")))))


def with_rotations(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph in which one operator computes queries and writes keys and values to their caches.

    Args:
        graph: for one CUDA device, weights and caches among its inputs; others come back as they are.

    Returns:
        The copy, or `graph` itself where there is nothing to do. Under autocast that is so: it casts the
        operands of the layers that it knows.
    """
    if torch.is_autocast_enabled("cuda") or any(is_context(node) for node in graph.graph.nodes):
        return graph
    specs = [spec_of(node) for node in graph.graph.nodes if node.op == "placeholder"]
    if not any(spec.dtype in KERNEL_DTYPES and _on_cuda(spec) for spec in specs):
        return graph
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    output = copied.graph_copy(graph.graph, mapped)
    copied.output(output)
    rewritten = [_rewrite(copied, key, found) for key, found in _key_writes(copied)]
    return graph_to_read(graph, copied) if any(rewritten) else graph


def _key_writes(graph: fx.Graph) -> list[tuple[fx.Node, Found]]:
    found = ((node, match(KEYS, node, {})) for node in graph.nodes if _is_write(node))
    return [(node, holes) for node, holes in found if holes is not None]


def _is_write(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node) == "setitem"


def _rewrite(graph: fx.Graph, key_write: fx.Node, found: Found) -> bool:
    """Put the operator in the place of the later write, if the rest of the pattern is there and it can be."""
    nodes = list(graph.nodes)
    for value_write in filter(_is_write, nodes):
        both = match(VALUES, value_write, found)
        for query in () if both is None else nodes:
            holes = match(QUERY, query, both or {})
            if holes is None:
                continue
            writes = sorted((key_write, value_write), key=nodes.index)
            whole = _whole_angles(holes) if _fits(holes) and _may_move(nodes, writes, query, holes) else None
            if whole is not None:
                _replace(graph, writes, query, {**holes, **whole})
            return whole is not None
    return False


def _fits(holes: Found) -> bool:
    """Whether the operator computes the pattern with these operands, none of them broadcast."""
    names = ("weight", "keys", "values", "q_bias", "v_bias", "log_factor")
    nodes, heads, width = [holes[name] for name in names], holes["heads"], holes["width"]
    if not all(isinstance(node, fx.Node) and node.op == "placeholder" for node in nodes):
        return False
    weight, keys, values, *others = (spec_of(node) for node in nodes)
    if not (isinstance(heads, int) and isinstance(width, int) and holes["keys"] is not holes["values"]):
        return False
    row = length_of(holes["rows"]), heads, width
    caches = [(cache.shape[0], cache.shape[1], cache.shape[3]) for cache in (keys, values) if cache.shape]
    shapes = [(heads * width,), (heads * width,), (1, heads, 1, 1)]
    written = match(Call("add", Hole("start"), Hole("written")), holes["end"], holes)
    return (
        all(_on_cuda(spec) for spec in (weight, keys, values, *others))
        and {weight.dtype, keys.dtype, values.dtype} == {holes["dtype"]}
        and has_kernel(holes["dtype"], width)
        and all(spec.dtype in (*KERNEL_DTYPES, torch.float32) for spec in others)
        and [spec.shape for spec in others] == shapes
        and caches == [row, row]
        and isinstance(holes["max_log_factor"], float)
        and (isinstance(holes["start"], fx.Node) or holes["start"] >= 0)
        and written is not None
        and length_of(written["written"]) == length_of(holes["tokens"]) is not None
    )


def _on_cuda(spec: InputSpec) -> bool:
    return spec.device is not None and spec.device.type == "cuda"


def _whole_angles(holes: Found) -> Found | None:
    """The inputs that the angles come from, and the rows of them, if some are gathered."""
    angles = tuple(holes[name] for name in _ANGLES)
    found = match(tuple(_gathered(Hole(name)) for name in _ANGLES), angles, {})
    found = found or {**dict(zip(_ANGLES, angles, strict=True)), "keep": None}
    whole, keep = [found[name] for name in _ANGLES], found["keep"]
    if not all(isinstance(node, fx.Node) and node.op == "placeholder" for node in whole):
        return None
    cos, sin = map(spec_of, whole)
    rows, tokens = length_of(holes["rows"]), length_of(holes["tokens"])
    if keep is None:
        placed = cos.shape is not None and cos.shape[2:3] == (tokens,)
    else:
        placed = keep.op == "placeholder" and spec_of(keep).shape == (rows, tokens)
    shaped = cos.shape is not None and (*cos.shape[:2], *cos.shape[3:]) == (1, 1, holes["width"] // 2)
    fits = placed and shaped and cos.shape == sin.shape
    return (
        found if fits and all(_on_cuda(spec) and spec.dtype == torch.float32 for spec in (cos, sin)) else None
    )


def _gathered(angles: Hole) -> Call:
    """Rows of angles that all batch rows share, as `passes.gathering` cuts them out."""
    every = slice(None)
    rows = Call("getitem", Hole("keep"), (every, None, every, None))
    whole = Call("expand", angles, Hole("size"), -1, -1, -1)
    return Call("gather", whole, 2, Call("expand", rows, -1, 1, -1, Hole("pairs")))


def length_of(size: Any) -> object:
    """A size that is a number or an input, or the size of an input; None for others."""
    if not isinstance(size, fx.Node):
        return sympy.Integer(size) if isinstance(size, int) else None
    if size.op == "placeholder":
        return spec_of(size).value
    source = size.args[0] if size.target == "size" and len(size.args) == 2 else None
    if not isinstance(source, fx.Node) or source.op != "placeholder":
        return None
    shape = spec_of(source).shape
    return None if shape is None else shape[size.args[1]]  # type: ignore[index]


def _may_move(nodes: list[fx.Node], writes: list[fx.Node], query: fx.Node, holes: Found) -> bool:
    """Whether nothing looks at the caches between the writes, or at the queries before both are made."""
    first, last = map(nodes.index, writes)
    caches = {holes["keys"], holes["values"]}
    views = set(caches)
    for node in nodes[: last + 1]:
        if views & set(node.all_input_nodes) and node not in writes:
            views.add(node)
    looks = any(views & set(node.all_input_nodes) for node in nodes[first + 1 : last])
    return not looks and all(nodes.index(user) > last for user in query.users)


def _replace(graph: fx.Graph, writes: list[fx.Node], query: fx.Node, holes: Found) -> None:
    """What only the pattern read is left to the compiler, which drops what nobody reads."""
    factor, caches = ("log_factor", "max_log_factor"), ("keys", "values", "start", "keep")
    names = ("qkv", "q_bias", "v_bias", *factor, *_ANGLES, *caches)
    with graph.inserting_before(writes[-1]):
        arguments = tuple(holes[name] for name in names)
        made = graph.call_function(torch.ops.toprovar.rotated_qkv.default, arguments)
    query.replace_all_uses_with(made)
    for write in writes:
        graph.erase_node(write)
