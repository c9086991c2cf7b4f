"""Stock attention of a graph for a Hopper card becomes `toprovar::attention`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx
from torch.nn import functional as F

from toprovar_fx.input_specs import tensor_spec
from toprovar_fx.lowering.attentions import with_attentions
from toprovar_fx.lowering.region import Region

OURS = torch.ops.toprovar.attention.default
sdpa = F.scaled_dot_product_attention
Q, KV = (2, 4, 5, 16), (2, 4, 9, 16)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def graph_of(
    call: Callable[..., Any], q: tuple[int, ...] = Q, kv: tuple[int, ...] = KV, device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16, mask: tuple[int, ...] | None = None,
) -> fx.GraphModule:  # fmt: skip
    """A traced call, its inputs on `device`; types and shapes from a run on a CPU."""
    graph = fx.symbolic_trace(call)
    given = {
        "q": torch.randn(q),
        "k": torch.randn(kv),
        "v": torch.randn(kv),
        "mask": torch.zeros(mask or (q[-2], kv[-2])),
    }
    for node in graph.graph.find_nodes(op="placeholder"):
        value = node.meta["example_value"] = given[node.target].to(dtype)
        shape = tuple(map(sympy.Integer, value.shape))
        node.meta["toprovar_spec"] = tensor_spec(shape, dtype, torch.device(device))
    for node in graph.graph.find_nodes(op="call_function", target=sdpa):
        node.meta["example_value"] = torch.empty(*q[:-1], kv[-1], dtype=dtype)
    return graph


def ours(graph: fx.GraphModule) -> list[fx.Node]:
    return graph.graph.find_nodes(op="call_function", target=OURS)


def keywords(q, k, v):
    return sdpa(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=0.5) * 2


def positions(q, k, v):
    return sdpa(q, k, v, None, 0.0, False, scale=1) * 2


def by_default(q, k, v):
    return sdpa(q, k, v) * 2


def of_a_cache(q, k, v):
    return sdpa(q, operator.getitem(k, (slice(None), slice(None), slice(None, 7))), v[:, :, :7], scale=0.5)


@pytest.mark.parametrize(
    ("call", "scale"), [(keywords, 0.5), (positions, 1.0), (by_default, 0.25), (of_a_cache, 0.5)]
)
def test_every_way_to_write_it(call: Callable[..., Any], scale: float) -> None:
    graph = graph_of(call)
    replaced = with_attentions(graph)
    (node,) = ours(replaced)
    assert node.args[3] == scale
    assert isinstance(node.args[3], float)
    assert sdpa not in {node.target for node in replaced.graph.nodes}
    assert node.meta["example_value"].shape == Q
    assert len(ours(graph)) == 0, "the graph that was given stays"
    given = [torch.randn(Q), torch.randn(KV), torch.randn(KV)]
    assert torch.equal(replaced(*given), graph(*given))


def test_shared_key_heads() -> None:
    graph = graph_of(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), kv=(2, 2, 9, 16))
    replaced = with_attentions(graph)
    assert ours(replaced)
    given = [torch.randn(Q), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)]
    assert torch.equal(replaced(*given), graph(*given))


def masked(q, k, v, mask):
    return sdpa(q, k, v, mask)


def named_mask(q, k, v, mask):
    return sdpa(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("call", [masked, named_mask])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("known_by", ["toprovar_spec", "example_value"])
def test_a_number_per_key_goes_along(call: Callable[..., Any], rows: int, known_by: str) -> None:
    graph = graph_of(call, mask=(rows, 1, 1, 9))
    (mask,) = [node for node in graph.graph.nodes if node.target == "mask"]
    mask.meta = {known_by: mask.meta[known_by]}
    replaced = with_attentions(graph)
    (node,) = ours(replaced)
    assert node.args[4].target == "mask"
    given = [torch.randn(Q), torch.randn(KV), torch.randn(KV), torch.randn(rows, 1, 1, 9)]
    given[3][0, ..., 3] = -math.inf
    assert torch.equal(replaced(*given), graph(*given))


@pytest.mark.parametrize("mask", [(2, 4, 1, 9), (2, 1, 5, 9), (1, 5, 9), (9,)], ids=str)
def test_other_masks_stay(mask: tuple[int, ...]) -> None:
    graph = graph_of(masked, mask=mask)
    assert with_attentions(graph) is graph


def test_a_mask_of_truth_values_stays() -> None:
    graph = graph_of(masked, mask=(2, 1, 1, 9))
    (node,) = [node for node in graph.graph.nodes if node.target == "mask"]
    node.meta = {"example_value": torch.ones(2, 1, 1, 9, dtype=torch.bool)}
    assert with_attentions(graph) is graph


def causal(q, k, v):
    return sdpa(q, k, v, is_causal=True)


def with_dropout(q, k, v):
    return sdpa(q, k, v, dropout_p=0.1)


def computed_scale(q, k, v):
    return sdpa(q, k, v, scale=q.size(3))


@pytest.mark.parametrize("call", [masked, named_mask, causal, with_dropout, computed_scale])
def test_what_asks_for_more_stays(call: Callable[..., Any]) -> None:
    graph = graph_of(call)
    assert with_attentions(graph) is graph


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu"},
        {"dtype": torch.float32},
        {"q": (4, 5, 16), "kv": (4, 9, 16)},
    ],
    ids=str,
)
def test_other_devices_types_and_ranks_stay(changes: dict[str, Any]) -> None:
    graph = graph_of(keywords, **changes)
    assert with_attentions(graph) is graph


def test_queries_that_are_broadcast_stay() -> None:
    graph = graph_of(keywords, q=(1, 4, 5, 16))
    (node,) = graph.graph.find_nodes(op="call_function", target=sdpa)
    node.meta["example_value"] = torch.empty(Q, dtype=torch.bfloat16)
    assert with_attentions(graph) is graph


def test_values_that_nobody_recorded_stay() -> None:
    graph = graph_of(keywords)
    (node,) = graph.graph.find_nodes(op="call_function", target=sdpa)
    del node.meta["example_value"]
    assert with_attentions(graph) is graph


def test_other_cards_keep_stock_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    graph = graph_of(keywords)
    assert with_attentions(graph) is graph


def test_autocast_keeps_stock_attention() -> None:
    graph = graph_of(keywords)
    # A context manager would not switch it on without a device.
    torch.set_autocast_enabled("cuda", True)
    try:
        assert with_attentions(graph) is graph
    finally:
        torch.set_autocast_enabled("cuda", False)
    first = graph.graph.find_nodes(op="call_function", target=sdpa)[0]
    with graph.graph.inserting_before(first):
        enter = torch.amp.autocast_mode._enter_autocast
        graph.graph.call_function(enter, ("cuda", torch.bfloat16, True, True))
    assert with_attentions(graph) is graph


def test_a_mask_that_was_computed() -> None:
    graph = graph_of(lambda q, k, v, mask: sdpa(q, k, v, mask * 2), mask=(1, 1, 1, 9))
    assert with_attentions(graph) is graph, "nobody recorded it"
    (doubled,) = graph.graph.find_nodes(op="call_function", target=operator.mul)
    doubled.meta["example_value"] = torch.zeros(1, 1, 1, 9)
    (node,) = ours(with_attentions(graph))
    assert node.args[4].target is operator.mul


def test_one_of_two_attentions() -> None:
    graph = graph_of(lambda q, k, v, mask: sdpa(sdpa(q, k, v), k, v, mask))
    replaced = with_attentions(graph)
    (node,) = ours(replaced)
    assert node.args[3] == 1 / math.sqrt(16)
    (kept,) = replaced.graph.find_nodes(op="call_function", target=sdpa)
    assert kept.args[0] is node


def test_views_of_a_cache_reach_the_operator_without_a_copy() -> None:
    stand_in = pytest.importorskip(
        "benchmarks.hopper_stand_in", reason="needs Triton, which is for Linux only"
    )

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attended = sdpa(q.transpose(1, 2), k[:, :, :7], v[:, :, :7], scale=1.0)
        return attended.transpose(1, 2).reshape(2, 5, 64)

    # Queries [B, L, H, E], as a projection leaves them.
    graph = graph_of(block, q=(2, 5, 4, 16))
    (node,) = graph.graph.find_nodes(op="call_function", target=sdpa)
    for changed in (node, node.args[0]):
        changed.meta["example_value"] = torch.empty(Q, dtype=torch.bfloat16)
    code = stand_in.generated_code(Region(graph, "inductor"), {})
    assert [launch.name for launch in stand_in.read_launches(code)] == ["toprovar.attention"]
