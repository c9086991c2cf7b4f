"""Blocks whose queries, keys and values one operator makes."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import sympy
import torch
from torch import Tensor, fx

from toprovar_fx.analysis.graph_sizes import spec_of
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.rotations import with_rotations
from toprovar_fx.schedules import Schedule

block_kernels = pytest.importorskip(
    "benchmarks.block_kernels", reason="needs Triton, which is for Linux only"
)
SCHEDULE = Schedule.infinity()
# Calls by block, an operator with its product as one; without operators 19 to 21 (torch 2.11 and 2.13).
MOST = {
    "block: all tokens": 8,
    "block: all tokens, entropies": 9,
    "block: K tokens from block_input on, entropies": 11,
    "block: K tokens from block_input on": 10,
}
DENSE, PRUNED = "block: all tokens", "block: K tokens from block_input on"


def on_cuda(region: Region, device: str = "cuda") -> fx.GraphModule:
    """A copy of a region's graph whose inputs are said to be on a device."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(region.graph.graph, {}))
    for node in copied.find_nodes(op="placeholder"):
        spec = spec_of(node)
        node.meta["toprovar_spec"] = replace(spec, device=spec.device and torch.device(device))
    return fx.GraphModule(region.graph, copied)


def operators(graph: fx.GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def writes(graph: fx.GraphModule) -> list[fx.Node]:
    return graph.graph.find_nodes(op="call_function", target=operator.setitem)


def arguments(region: Region, length: int = 6, kept: int = 3, offset: int = 5) -> list[object]:
    """Random inputs of a block on a CPU."""
    sizes = {"offset": offset, "K": kept}
    found: list[object] = []
    for node, spec in zip(region.graph.graph.find_nodes(op="placeholder"), region.specs, strict=True):

        def number(size: object) -> int:
            return int(size.xreplace({s: sizes.get(str(s), length) for s in size.free_symbols}))

        if spec.shape is None:
            found.append(number(spec.value))
        elif spec.dtype == torch.int64:
            rows = [torch.randperm(length)[:kept].sort().values for _ in range(number(spec.shape[0]))]
            found.append(torch.stack(rows))
        else:
            shape, strides = ([number(size) for size in sizes_of] for sizes_of in (spec.shape, spec.stride))
            scale = 0.05 if "weight" in node.name else 1.0
            made = torch.empty_strided(shape, strides, dtype=spec.dtype)
            found.append(made.copy_(scale * torch.randn(shape)))
    return found


def copies(given: list[object], device: str = "cpu") -> list[object]:
    """Inputs again, laid out alike: an angle table's halves have gaps, which `clone` closes."""
    return [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)
        if isinstance(value, Tensor)
        else value
        for value in given
    ]


@pytest.mark.parametrize("name", MOST)
def test_a_block_computes_the_same(regions, name):
    region = regions[name]
    fused = with_rotations(on_cuda(region))
    assert torch.ops.toprovar.rotated_qkv.default in operators(fused)
    assert not writes(fused)
    given = arguments(region)
    again = copies(given)
    # The operator computes the same on any device; on a CPU even the same bits.
    expected, found = region.graph(*given), fused(*again)
    for one, other in zip((expected, *given), (found, *again), strict=True):
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_the_traced_graph_stays(regions):
    graph = on_cuda(regions[DENSE])
    before = str(graph.graph)
    assert with_rotations(graph) is not graph
    assert str(graph.graph) == before


@pytest.mark.parametrize("name", MOST)
def test_the_kernels_of_a_block_do_not_grow_in_number(regions, name):
    found = block_kernels.launches(regions[name], block_kernels.size_hints(SCHEDULE))
    assert len(found) <= MOST[name], "\n".join(launch.name for launch in found)
    # Each cache is written in its place: a copy of one would take longer than all the rest.
    names = [launch.name for launch in found]
    assert not any("clone" in name for name in names)
    # Over the cache and over the padded text.
    apart = ["toprovar.rotated_qkv", "toprovar.attention_with_entropy"]
    of_cache = apart if "entropies" in name else ["toprovar.rotated_attention"]
    attentions = [each for each in names if "attention" in each or "rotated" in each]
    assert attentions == [*of_cache, "toprovar.projected_attention"]


def other_dtype(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="placeholder"):
        if node.meta["toprovar_spec"].dtype == torch.bfloat16:
            node.meta["toprovar_spec"] = replace(node.meta["toprovar_spec"], dtype=torch.float32)


def cache_of_another_dtype(graph: fx.GraphModule) -> None:
    cache = writes(graph)[0].args[0]
    cache.meta["toprovar_spec"] = replace(cache.meta["toprovar_spec"], dtype=torch.float16)


def keys_read_before_the_values_are_written(graph: fx.GraphModule) -> None:
    first, second = writes(graph)
    with graph.graph.inserting_before(second):
        graph.graph.call_method("sum", (first.args[0],))


def queries_read_before_the_keys_are_written(graph: fx.GraphModule) -> None:
    query = next(node for node in graph.graph.nodes if "scaled_dot" in node.name or node.name == "attended")
    with graph.graph.inserting_before(writes(graph)[0]):
        graph.graph.call_method("sum", (query.args[0],))


def one_cache_for_both(graph: fx.GraphModule) -> None:
    first, second = writes(graph)
    second.args = (first.args[0], *second.args[1:])


def values_at_other_slots(graph: fx.GraphModule) -> None:
    second = writes(graph)[1]
    every = slice(None)
    second.args = (second.args[0], (every, every, slice(0, 6), every), second.args[2])


def slots_of_another_number(graph: fx.GraphModule) -> None:
    """What is written is broadcast there, which the operator does not do."""
    for write in writes(graph):
        end = write.args[1][2].stop
        end.args = (end.args[0], 9)


def another_rotation(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="call_function", target=torch.stack):
        node.args = (tuple(reversed(node.args[0])),)


def keys_that_are_not_of_length_one(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="call_function", target=torch.nn.functional.normalize):
        node.kwargs = {"dim": -2}


def reshaped(graph: fx.GraphModule, part: str, axis: int, size: int) -> None:
    holder = next(node for node in graph.graph.find_nodes(op="placeholder") if part in node.name)
    spec = holder.meta["toprovar_spec"]
    shape = (*spec.shape[:axis], sympy.Integer(size), *spec.shape[axis + 1 :])
    holder.meta["toprovar_spec"] = replace(spec, shape=shape)


def angles_of_one_token(graph: fx.GraphModule) -> None:
    for part in ("in_cos", "in_sin"):
        reshaped(graph, part, 2, 1)


def angles_per_head(graph: fx.GraphModule) -> None:
    for part in ("in_cos", "in_sin"):
        reshaped(graph, part, 1, 2)


def sines_of_one_token(graph: fx.GraphModule) -> None:
    reshaped(graph, "in_sin", 2, 1)


def sines_in_half_precision(graph: fx.GraphModule) -> None:
    holder = next(node for node in graph.graph.find_nodes(op="placeholder") if "in_sin" in node.name)
    holder.meta["toprovar_spec"] = replace(holder.meta["toprovar_spec"], dtype=torch.bfloat16)


def a_bias_per_head(graph: fx.GraphModule) -> None:
    reshaped(graph, "q_bias", 0, 2)


def one_factor_for_all_heads(graph: fx.GraphModule) -> None:
    reshaped(graph, "scale_mul", 1, 1)


def caches_of_more_rows(graph: fx.GraphModule) -> None:
    reshaped(graph, "cache_keys", 0, 4)


@pytest.mark.parametrize(
    "change",
    [
        other_dtype,
        cache_of_another_dtype,
        keys_read_before_the_values_are_written,
        queries_read_before_the_keys_are_written,
        one_cache_for_both,
        values_at_other_slots,
        slots_of_another_number,
        another_rotation,
        keys_that_are_not_of_length_one,
        angles_of_one_token,
        angles_per_head,
        sines_of_one_token,
        sines_in_half_precision,
        a_bias_per_head,
        one_factor_for_all_heads,
        caches_of_more_rows,
    ],
    ids=lambda change: change.__name__,
)
def test_what_the_operator_does_not_compute_stays(regions, change):
    graph = on_cuda(regions[DENSE])
    change(graph)
    assert with_rotations(graph) is graph


def test_another_reader_keeps_what_it_reads(regions):
    graph = on_cuda(regions[DENSE])
    keys = writes(graph)[0].args[2]
    output = graph.graph.find_nodes(op="output")[0]
    output.args = ((output.args[0], keys),)
    fused = with_rotations(graph)
    assert torch.ops.toprovar.rotated_qkv.default in operators(fused)
    given = arguments(regions[DENSE])
    _, found = fused(*given)
    cache = given[[node.name for node in graph.graph.nodes].index(writes(graph)[0].args[0].name)]
    assert torch.equal(found, cache[:, :, 5:11])


def test_a_keep_set_for_all_rows_stays(regions):
    graph = on_cuda(regions[PRUNED])
    assert with_rotations(graph) is not graph
    reshaped(graph, "keep", 0, 1)
    assert with_rotations(graph) is graph


@pytest.mark.parametrize("name", [DENSE, PRUNED])
def test_other_devices_and_autocast_stay(regions, name):
    cpu = on_cuda(regions[name], "cpu")
    assert with_rotations(cpu) is cpu
    graph = on_cuda(regions[name])
    torch.set_autocast_enabled("cuda", True)
    try:
        assert with_rotations(graph) is graph
    finally:
        torch.set_autocast_enabled("cuda", False)


def assert_compiled_is_traced(
    graph: fx.GraphModule, traced: fx.GraphModule, inputs: list[object], device: str = "cpu"
) -> None:
    """Results and caches of a graph through Inductor are those of another as traced."""
    given, again = copies(inputs, device), copies(inputs, device)
    expected, found = traced(*given), Region(graph, "inductor")(*again)
    for one, other in zip((expected, *given), (found, *again), strict=True):
        if isinstance(one, Tensor) and one.is_floating_point():
            # bfloat16: sums of other orders move numbers to their neighbours; another order of writing and
            # reading would leave nothing alike.
            error = (other.double() - one.double()).norm() / one.double().norm()
            assert error < 2**-7, error


@pytest.mark.slow
@pytest.mark.parametrize("name", [DENSE, PRUNED])
def test_inductor_keeps_the_order_of_writing_and_reading(regions, name):
    fused = with_rotations(on_cuda(regions[name]))
    for node in fused.graph.find_nodes(op="placeholder"):
        spec = node.meta["toprovar_spec"]
        node.meta["toprovar_spec"] = replace(spec, device=spec.device and torch.device("cpu"))
    assert_compiled_is_traced(fused, regions[name].graph, arguments(regions[name]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [DENSE, PRUNED])
def test_on_cuda_a_compiled_block_is_the_traced_one(regions, name):
    graph = on_cuda(regions[name])
    assert_compiled_is_traced(graph, graph, arguments(regions[name], 64, 16), "cuda")
