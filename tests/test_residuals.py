"""Blocks in which one operator adds a linear layer to the residual and computes the norm that follows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from toprovar_fx.analysis.graph_sizes import spec_of
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.residuals import with_residuals

from .test_rotations import arguments, on_cuda

block_kernels = pytest.importorskip(
    "benchmarks.block_kernels", reason="needs Triton, which is for Linux only"
)
DENSE, PRUNED, PLACED = (
    "block: all tokens",
    "block: K tokens from block_input on",
    "block: K tokens from block_input on, in place",
)
OPERATORS = torch.ops.toprovar


@pytest.fixture(autouse=True)
def _in_place(regions: dict[str, Region]) -> None:
    """The pruned block in the form that writes its rows into the hidden state, too."""
    in_place = regions[PRUNED].rows_in_place()
    assert in_place is not None and in_place.name == PLACED
    regions[PLACED] = in_place


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def ours(graph: fx.GraphModule) -> list[str]:
    """The operators of the package in a graph."""
    nodes = graph.graph.find_nodes
    names = ("linear_add", "linear_add_norm", "linear_add_rows")
    found = {name: len(nodes(op="call_function", target=getattr(OPERATORS, name).default)) for name in names}
    return [name for name, count in found.items() for _ in range(count)]


def fused(region: Region, change: Callable[[fx.GraphModule], None] = lambda graph: None) -> list[str]:
    graph = on_cuda(region)
    change(graph)
    return ours(with_residuals(graph))


@pytest.mark.parametrize("name", [DENSE, f"{DENSE}, entropies", PRUNED])
def test_a_block_has_three(regions: dict[str, Region], name: str) -> None:
    assert fused(regions[name]) == ["linear_add", "linear_add_norm", "linear_add_norm"]


def test_rows_are_written_where_they_belong(regions: dict[str, Region]) -> None:
    assert fused(regions[PLACED]) == ["linear_add_norm", "linear_add_norm", "linear_add_rows"]


def test_a_residual_that_is_written_meanwhile(regions: dict[str, Region]) -> None:
    """Rows that are a view of the hidden state would be read behind others' writes."""
    graph = on_cuda(regions[PLACED])
    (put,) = graph.graph.find_nodes(op="call_method", target="index_put_")
    last = put.args[2]
    with graph.graph.inserting_before(last):
        view = graph.graph.call_method("narrow", (put.args[0], 1, 0, 3))
    last.replace_input_with(last.args[0], view)
    assert fused(regions[PLACED], lambda other: None).count("linear_add_rows") == 1
    assert ours(with_residuals(graph)).count("linear_add_rows") == 0


@pytest.mark.parametrize("name", [DENSE, PRUNED, PLACED])
def test_the_result_is_that_of_the_block(regions: dict[str, Region], name: str) -> None:
    """Bit for bit: without a card the operators compute what the model does."""
    region, given = regions[name], arguments(regions[name])
    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
    expected = region.graph(*given)
    found = with_residuals(on_cuda(region))(*copies)
    assert torch.equal(found, expected)
    for own, other in zip(copies, given, strict=True):
        assert not isinstance(own, torch.Tensor) or torch.equal(own, other)


def test_nothing_of_the_pattern_is_left(regions: dict[str, Region]) -> None:
    graph = with_residuals(on_cuda(regions[DENSE]))
    graph.graph.lint()
    # The first norm is that of the input; three of six layers are not added to a residual.
    assert len(graph.graph.find_nodes(op="call_function", target=F.layer_norm)) == 1
    assert len(graph.graph.find_nodes(op="call_function", target=F.linear)) == 3


def test_only_on_hopper(regions: dict[str, Region], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ours(with_residuals(regions[DENSE].graph))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert not fused(regions[DENSE])


def first(graph: fx.GraphModule, target: object, at: int = 0) -> fx.Node:
    return graph.graph.find_nodes(op="call_function", target=target)[at]


def another_reader_of_the_product(graph: fx.GraphModule) -> None:
    product = first(graph, F.linear, 1)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = ((output.args[0], product),)


def weights_in_full_precision(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="placeholder"):
        if "proj_weight" in node.name or "fc2_weight" in node.name:
            node.meta["toprovar_spec"] = replace(spec_of(node), dtype=torch.float32)


def a_gate_for_every_token(graph: fx.GraphModule) -> None:
    """What is multiplied differs between tokens, as in gated feed-forward nets."""
    for node in graph.graph.find_nodes(op="call_function", target=operator.mul):
        if node.args[0].target is F.linear:
            node.args = (node.args[0], graph.graph.find_nodes(op="placeholder")[0])


def weighted_sums(graph: fx.GraphModule) -> None:
    """`torch.add(x, y, alpha=2)`."""
    for node in graph.graph.find_nodes(op="call_function", target=operator.add):
        if any(isinstance(each, fx.Node) and each.target in (operator.mul, F.linear) for each in node.args):
            node.target, node.kwargs = torch.add, {"alpha": 2}


def sums_in_full_precision(graph: fx.GraphModule) -> None:
    """As of a residual in float32 under layers in half precision."""
    for node in graph.graph.find_nodes(op="call_function", target=operator.add):
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor):
            node.meta["example_value"] = value.float()


def gates_in_full_precision(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="placeholder"):
        if "ada_gss" in node.name:
            node.meta["toprovar_spec"] = replace(spec_of(node), dtype=torch.float32)
    for node in graph.graph.find_nodes(op="call_function", target=operator.getitem):
        if node.name.startswith(("gamma", "scale", "shift")):
            node.meta["example_value"] = node.meta["example_value"].float()


def weights_written_in_between(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="call_function", target=F.linear):
        with graph.graph.inserting_after(node):
            graph.graph.call_method("mul_", (graph.graph.find_nodes(op="placeholder")[0], 2))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (another_reader_of_the_product, ["linear_add", "linear_add_norm"]),
        (weights_in_full_precision, []),
        (a_gate_for_every_token, ["linear_add_norm"]),
        (weighted_sums, []),
        (sums_in_full_precision, []),
        (gates_in_full_precision, ["linear_add"]),
        (weights_written_in_between, []),
    ],
)
def test_what_is_left_alone(
    regions: dict[str, Region], change: Callable[[fx.GraphModule], None], left: list[str]
) -> None:
    assert fused(regions[DENSE], change) == left


def other_factor(graph: fx.GraphModule) -> None:
    """`norm * (2 + scale) + shift`."""
    for node in graph.graph.find_nodes(op="call_function", target=operator.add):
        if node.args[0] == 1:
            node.args = (2, node.args[1])


def norm_over_less(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="call_function", target=F.layer_norm):
        node.args = (node.args[0], (128,), *node.args[2:])


def written_before_its_norm(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="call_function", target=F.layer_norm):
        with graph.graph.inserting_before(node):
            graph.graph.call_method("mul_", (node.args[0], 2))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (other_factor, ["linear_add", "linear_add", "linear_add_norm"]),
        (norm_over_less, ["linear_add"] * 3),
        (written_before_its_norm, ["linear_add"] * 3),
    ],
)
def test_norms_that_stay_apart(
    regions: dict[str, Region], change: Callable[[fx.GraphModule], None], left: list[str]
) -> None:
    assert fused(regions[DENSE], change) == left
