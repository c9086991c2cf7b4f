"""Rotation and attention in one: by operators, by its kernel, and where a graph has the two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.lowering.attentions import with_attentions
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.rotated_attentions import with_rotated_attentions
from toprovar_fx.lowering.rotations import with_rotations
from toprovar_fx.ops.attention import attention
from toprovar_fx.ops.rotated_attention import rotated_attention
from toprovar_fx.ops.rotated_qkv import rotated_qkv

from .interpreted_rotation import relative
from .test_ops_rotated_qkv import of_model
from .test_rotations import arguments, on_cuda
from .triton_runs import interpreted, needs_triton

DENSE, PRUNED = "block: all tokens", "block: K tokens from block_input on"


def by_two(given: dict[str, object], scale: float) -> Tensor:
    queries = rotated_qkv(**given)  # type: ignore[arg-type]
    end = given["start"] + queries.shape[2]  # type: ignore[operator]
    return attention(queries, given["keys"][:, :, :end], given["values"][:, :, :end], scale)  # type: ignore[index]


def copied(given: dict[str, object]) -> dict[str, object]:
    return {**given, "keys": given["keys"].clone(), "values": given["values"].clone()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_card_it_is_the_two(dtype: torch.dtype) -> None:
    given, _ = of_model(6, dtype)
    given["keep"] = None
    own = copied(given)
    assert torch.equal(rotated_attention(**own, scale=0.3), by_two(given, 0.3))
    assert torch.equal(own["keys"], given["keys"]) and torch.equal(own["values"], given["values"])


def test_it_keeps_the_rules() -> None:
    given, _ = of_model(3, torch.bfloat16)
    torch.library.opcheck(torch.ops.toprovar.rotated_attention.default, (*given.values(), None, 0.3))


def test_flops_are_those_of_the_attention() -> None:
    given, _ = of_model(3, torch.bfloat16)
    with flop_counter() as counter:
        rotated_attention(**given, keep=None, scale=0.3)
    rows, _, _, heads, width = given["qkv"].shape
    assert counter.get_total_flops() == 4 * rows * heads * 3 * (given["start"] + 3) * width


@needs_triton
def test_the_kernel_interpreted() -> None:
    found = interpreted("interpreted_rotated_attention")
    assert len(found) >= 14
    for name, case in found.items():
        assert case["untouched"], name
        assert max(case["keys"], case["values"]) <= 2**-10, (name, case)
        assert case["error"] <= 3e-3, (name, case)


@needs_triton
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tokens", [1, 36, 64])
def test_the_kernel_compiles_for_hopper(width: int, tokens: int) -> None:
    from .kernel_compiler import rotated_attention_kernel

    report = rotated_attention_kernel(width, tokens)
    # Some registers of 64 tokens, once.
    assert report["spilled"] <= (256 if tokens > 32 else 0)
    assert report["shared"] <= 113 * 2**10


# In graphs


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def before(region: Region) -> fx.GraphModule:
    return with_rotations(with_attentions(on_cuda(region)))


def fused(graph: fx.GraphModule) -> int:
    found = with_rotated_attentions(graph).graph
    return len(found.find_nodes(op="call_function", target=torch.ops.toprovar.rotated_attention.default))


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("name", [DENSE, PRUNED])
def test_a_block_has_one(regions: dict[str, Region], name: str) -> None:
    region, given = regions[name], arguments(regions[name])
    graph = with_rotated_attentions(before(region))
    assert fused(before(region)) == 1
    others = torch.ops.toprovar.rotated_qkv.default
    assert not graph.graph.find_nodes(op="call_function", target=others)
    assert len(graph.graph.find_nodes(op="call_function", target=torch.ops.toprovar.linear.default)) == 1
    copies = [value.clone() if isinstance(value, Tensor) else value for value in given]
    assert torch.equal(graph(*copies), region.graph(*given))
    for own, other in zip(copies, given, strict=True):
        assert not isinstance(own, Tensor) or torch.equal(own, other)


@pytest.mark.usefixtures("_hopper")
def test_entropies_need_the_queries(regions: dict[str, Region]) -> None:
    assert fused(before(regions[f"{DENSE}, entropies"])) == 0


def the(graph: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """The rotation and the attention over the cache."""
    targets = torch.ops.toprovar.rotated_qkv.default, torch.ops.toprovar.attention.default
    found = [graph.graph.find_nodes(op="call_function", target=target)[0] for target in targets]
    return found[0], found[1]


def less_of_the_cache(graph: fx.GraphModule) -> None:
    _, attention = the(graph)
    keys = attention.args[1]
    every = slice(None)
    keys.args = (keys.args[0], (every, every, slice(None, 3), every))


def another_reader_of_the_queries(graph: fx.GraphModule) -> None:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = ((output.args[0], the(graph)[0]),)


def with_a_mask(graph: fx.GraphModule) -> None:
    _, attention = the(graph)
    mask = next(node for node in graph.graph.find_nodes(op="placeholder") if "mask" in node.name)
    attention.args = (*attention.args[:4], mask)


def keys_as_values(graph: fx.GraphModule) -> None:
    _, attention = the(graph)
    attention.args = (attention.args[0], attention.args[2], attention.args[1], *attention.args[3:])


def cache_read_in_between(graph: fx.GraphModule) -> None:
    rotation, _ = the(graph)
    with graph.graph.inserting_after(rotation):
        seen = graph.graph.call_method("sum", (rotation.args[7],))
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = ((output.args[0], seen),)


def written_in_between(graph: fx.GraphModule) -> None:
    rotation, _ = the(graph)
    with graph.graph.inserting_after(rotation):
        graph.graph.call_method("mul_", (rotation.args[7], 2))


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(
    "change",
    [
        less_of_the_cache,
        another_reader_of_the_queries,
        with_a_mask,
        keys_as_values,
        cache_read_in_between,
        written_in_between,
    ],
)
def test_what_stays_two(regions: dict[str, Region], change: Callable[[fx.GraphModule], None]) -> None:
    graph = before(regions[DENSE])
    change(graph)
    assert fused(graph) == 0


# On a card


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "width"), [(16, 128), (7, 64)])
@pytest.mark.parametrize("tokens", [1, 4, 16, 36, 64, 80])
def test_on_a_card_it_is_the_two(tokens: int, heads: int, width: int) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for compute capability 9.0")
    given, _ = of_model(tokens, torch.bfloat16, "cuda", heads, width)
    given["keep"] = None
    own = copied(given)
    found = rotated_attention(**own, scale=0.1)
    queries = rotated_qkv(**given)
    end = given["start"] + tokens
    expected = F.scaled_dot_product_attention(
        *(each.double() for each in (queries, given["keys"][:, :, :end], given["values"][:, :, :end])),
        scale=0.1,
    )
    assert found.transpose(1, 2).is_contiguous()
    assert relative(found, expected) <= 2**-6
    for name in ("keys", "values"):
        assert torch.allclose(own[name], given[name], rtol=2**-7, atol=1e-3)
