"""`toprovar::attention`: its rules on a CPU, its choice of kernels, and the kernels where a card has them."""

from __future__ import annotations

import math
import operator
import re
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.lowering.for_device import for_device
from toprovar_fx.lowering.region import Region
from toprovar_fx.ops import attention
from toprovar_fx.ops.attention_plan import Deal, tiles_of

from .test_lowering_attentions import graph_of
from .triton_runs import interpreted, needs_triton

HALF = (torch.bfloat16, torch.float16)


def operands(
    heads: int = 4, key_heads: int = 4, queries: int = 5, keys: int = 9, width: int = 8, values: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(2, heads, queries, width), (2, key_heads, keys, width), (2, key_heads, keys, values)]
    return tuple(torch.randn(shape) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"key_heads": 2}, {"values": 6}, {"queries": 1}, {"keys": 1}], ids=str
)
def test_a_cpu_computes_stock_attention_bit_for_bit(dtype: torch.dtype, changes: dict[str, int]) -> None:
    q, k, v = (x.to(dtype) for x in operands(**changes))
    found = attention(q, k, v, 0.7)
    assert torch.equal(
        found, F.scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa="key_heads" in changes)
    )
    assert found.transpose(1, 2).is_contiguous()
    torch.library.opcheck(torch.ops.toprovar.attention.default, (q, k, v, 0.7))


def test_keys_that_rows_share_and_views_of_a_cache() -> None:
    q, k, v = operands()
    cache = torch.full((2, 2, 4, 20, 8), math.nan)
    cache[0, :, :, :9], cache[1, :, :, :9] = k, v
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(attention(q, cache[0, :, :, :9], cache[1, :, :, :9], 1.0), expected)
    expected = F.scaled_dot_product_attention(q, k[:1], v[:1], scale=1.0)
    torch.testing.assert_close(attention(q, k[:1], v[:1], 1.0), expected)


def test_its_operations_are_counted() -> None:
    with flop_counter() as counter:
        attention(*operands(), 1.0)
    assert counter.get_total_flops() == 4 * 2 * 4 * 5 * 9 * 8


def test_other_ranks_are_refused() -> None:
    q, k, v = operands()
    with pytest.raises(ValueError, match=r"k \[4, 9, 8\]: expected four dimensions"):
        attention(q, k[0], v, 1.0)


@needs_triton
def test_ranges_of_keys_are_joined() -> None:
    for name, (error, lost) in interpreted("interpreted_merge").items():
        assert error <= (2e-3 if "half" in name else 2e-6), name
        assert not lost, name


@needs_triton
def test_the_kernel_that_deals_out_tiles_compiles_for_hopper() -> None:
    from toprovar_fx.ops.triton_launch import GLUON_KNOWN

    from .kernel_compiler import dealt_kernel

    if not GLUON_KNOWN:
        pytest.skip("the Hopper kernel is not for this version of Triton")
    report = dealt_kernel()
    assert report["spilled"] <= 64, "a few addresses, while the warps part"
    assert not report["serialized"]
    assert report["shared"] <= 227 * 2**10
    assert report["registers"] <= 168, "of two consumers with 232 and a producer with 40"
    # Nothing comes in before the wait.
    told = re.findall(r"griddepcontrol\.\w+|cp\.async\.bulk\.tensor\.4d\.shared", report["ptx"])
    assert told[:2] == ["griddepcontrol.launch_dependents", "griddepcontrol.wait"]
    assert len(told) > 2


def on_card(
    dtype: torch.dtype, queries: int, keys: int, heads: int = 4, key_heads: int = 4, norm: float = 5.0,
    width: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries laid out as models make them, keys and values in front of what is not a number."""
    q = norm * F.normalize(torch.randn(2, queries, heads, width, device="cuda"), dim=-1)
    cache = torch.full((2, 2, key_heads, keys + 70, width), math.nan, device="cuda")
    cache[0, :, :, :keys] = F.normalize(torch.randn(2, key_heads, keys, width, device="cuda"), dim=-1)
    cache[1, :, :, :keys] = torch.randn(2, key_heads, keys, width, device="cuda")
    k, v = (x[:, :, :keys] for x in cache.to(dtype))
    return q.to(dtype).transpose(1, 2), k, v


def error_of(
    found: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, mask: Tensor | None = None
) -> float:
    keys, values = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = scale * q.double() @ keys.mT
    expected = (logits if mask is None else logits + mask.double()).softmax(-1) @ values
    assert found.transpose(1, 2).is_contiguous()
    assert found.dtype == q.dtype
    return float((found.double() - expected).abs().max())


def for_hopper(module: str):
    """A module of kernels, or no test where the card is another one."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for compute capability 9.0")
    return pytest.importorskip(f"toprovar_fx.ops.{module}")


@pytest.fixture
def launch():
    launch = for_hopper("attention_launch").launch

    def in_ranges(q: Tensor, k: Tensor, v: Tensor, scale: float, ranges: int, first: int = 0) -> Tensor:
        """All tiles but the first ones in ranges of keys, by a few programs that have several each."""
        tiles = tiles_of(q.shape[2], q.shape[0] * q.shape[1])
        return launch(q, k, v, scale, Deal(min(first, tiles), ranges, 5))

    return in_ranges


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("ranges", [1, 2, 3, 8])
def test_the_kernel_equals_float64(launch, dtype: torch.dtype, ranges: int) -> None:
    limit = 2e-2 if dtype == torch.bfloat16 else 3e-3
    lengths = [(1, 1), (1, 300), (51, 1700), (128, 1024), (129, 1025), (205, 1153), (300, 127)]
    for (queries, keys), norm in product(lengths, (0.0, 5.0, 100.0)):
        inputs = on_card(dtype, queries, keys, norm=norm)
        assert error_of(launch(*inputs, 1.0, ranges), *inputs) <= limit, (queries, keys, norm)
    inputs = on_card(dtype, 70, 2000, heads=6, key_heads=2)
    assert error_of(launch(*inputs, 0.3, ranges), *inputs, 0.3) <= limit
    _, k, v = on_card(dtype, 200, 3000)
    sharp = 100 * k[:, :, :200]
    assert error_of(launch(sharp, k, v, 1.0, ranges), sharp, k, v) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("first", [1, 3, 7])
def test_whole_tiles_before_those_in_ranges(launch, first: int) -> None:
    for queries, keys in [(1, 300), (128, 1024), (129, 1025), (300, 1500)]:
        inputs = on_card(torch.bfloat16, queries, keys)
        assert error_of(launch(*inputs, 1.0, 3, first), *inputs) <= 2e-2, (queries, keys)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [300, 576])
def test_recorded_behind_copies_and_zeros_it_waits_for_them(launch, queries: int) -> None:
    q, k, v = (x.contiguous() for x in on_card(torch.bfloat16, queries, 1497, heads=28, key_heads=28))
    expected = attention(q, k, v, 1.0)
    assert error_of(expected, q, k, v) <= 2e-2
    torch.cuda.synchronize()
    graph, room = torch.cuda.CUDAGraph(), [torch.empty_like(x) for x in (q, k, v)]
    out = torch.empty(30, *q.shape, device="cuda", dtype=q.dtype)
    with torch.cuda.graph(graph):
        # Who reads the result is launched right behind; memory of one round is that of the next.
        for each in out:
            for to, source in zip(room, (q, k, v), strict=True):
                to.zero_()
                to.copy_(source)
            each.copy_(attention(*room, 1.0))
    graph.replay()
    assert all(torch.equal(each, expected) for each in out)


@pytest.mark.gpu
@pytest.mark.parametrize("ranges", [1, 4])
def test_what_is_not_a_number_stays_in_its_sample(launch, ranges: int) -> None:
    q, k, v = on_card(torch.bfloat16, 70, 2000)
    k[1, :, 1300] = math.nan
    found = launch(q, k, v, 1.0, ranges)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (9, 30), (51, 1700), (205, 4000), (600, 1500)])
def test_the_operator_by_itself_in_a_graph_and_compiled(queries: int, keys: int, fresh_dynamo: None) -> None:
    inputs = on_card(torch.bfloat16, queries, keys, heads=16, key_heads=16)
    expected = attention(*inputs, 1.0)
    assert error_of(expected, *inputs) <= 2e-2
    torch.library.opcheck(torch.ops.toprovar.attention.default, (*inputs, 1.0))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attention(*inputs, 1.0)
    for _ in range(3):
        found.zero_()
        graph.replay()
        assert torch.equal(found, expected)
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, 1.0).transpose(1, 2).flatten(2) + 1, fullgraph=True
    )
    assert torch.equal(compiled(*inputs), expected.transpose(1, 2).flatten(2) + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [51, 600])
def test_a_compiled_graph_calls_it_on_views_of_a_cache(launch, queries: int) -> None:
    q, k, v = on_card(torch.bfloat16, queries, 1700, heads=16, key_heads=16)
    k, v = (x.as_strided((2, 16, 1770, 128), x.stride()) for x in (k, v))

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q * 2, k[:, :, :1700], v[:, :, :1700], scale=1.0).transpose(
            1, 2
        )

    graph = graph_of(block, q=tuple(q.shape), kv=tuple(k.shape), device="cuda:0")
    (doubled,) = graph.graph.find_nodes(op="call_function", target=operator.mul)
    doubled.meta["example_value"] = torch.empty(q.shape, dtype=q.dtype)
    assert "toprovar.attention" in for_device(graph).code
    found = Region(graph, "inductor")(q.contiguous(), k, v)
    expected = attention(2 * q, k[:, :, :1700], v[:, :, :1700], 1.0)
    assert torch.equal(found, expected.transpose(1, 2))


@pytest.mark.gpu
@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("queries", [51, 600])
def test_what_the_kernel_does_not_take_is_stock(queries: int) -> None:
    from toprovar_fx.ops.attention_launch import deal_for

    q, k, v = on_card(torch.bfloat16, queries, 1700, heads=16, key_heads=16)
    for inputs in (
        (q.float(), k.float(), v.float()),
        (q[..., :80], k[..., :80], v[..., :80]),
        (q, k, v[..., :96]),
    ):
        expected = F.scaled_dot_product_attention(*inputs, scale=0.5)
        assert torch.equal(attention(*inputs, 0.5), expected)
    # The kernel starts from a peak of -inf; and cuDNN answers a negative factor with NaN, so no comparison.
    assert [deal_for(q, k, v, scale) is not None for scale in (-0.5, 0.0, 0.5)] == [False, False, True]
