from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.ops import attention_entropy, attention_with_entropy

from .float64_attention import attended

OPERATOR = torch.ops.toprovar.attention_with_entropy.default


def inputs(
    heads: int = 4, key_heads: int = 4, queries: int = 20, keys: int = 37, width: int = 32, norm: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    q = norm * F.normalize(torch.randn(2, heads, queries, width), dim=-1)
    k = F.normalize(torch.randn(2, key_heads, keys, width), dim=-1)
    return q, k, torch.randn(2, key_heads, keys, width)


@pytest.mark.parametrize("norm", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("first_key", [0, 17])
def test_equals_the_float64_oracle(norm: float, first_key: int) -> None:
    q, k, v = inputs(norm=norm)
    expected, nats = attended(q, k, v, 1.0, first_key)
    for mean in (False, True):
        out, entropy = attention_with_entropy(q, k, v, 1.0, mean, first_key)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
        right = nats.mean(1) if mean else nats
        torch.testing.assert_close(entropy.double(), right, rtol=1e-5, atol=1e-6 + 1e-7 * norm)
        assert entropy.dtype == torch.float32
        assert entropy.min() >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_on_a_cpu_the_output_is_stock_attention_bit_for_bit(dtype: torch.dtype, key_heads: int) -> None:
    q, k, v = (x.to(dtype) for x in inputs(key_heads=key_heads))
    out, entropy = attention_with_entropy(q, k, v, 0.7, False, 5)
    stock = F.scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa=key_heads < 4)
    assert torch.equal(out, stock)
    assert torch.equal(entropy, attention_entropy(q, k, 0.7, False, 5))


def test_values_may_be_wider_than_keys() -> None:
    q, k, _ = inputs()
    v = torch.randn(2, 4, 37, 48)
    out, _ = attention_with_entropy(q, k, v, 1.0)
    torch.testing.assert_close(out.double(), attended(q, k, v)[0], rtol=1e-5, atol=1e-5)


@given(
    repeats=st.integers(1, 3),
    queries=st.integers(1, 9),
    keys=st.integers(1, 17),
    width=st.sampled_from([8, 24]),
    norm=st.sampled_from([0.0, 0.5, 60.0]),
    data=st.data(),
)
def test_any_shape_equals_the_oracle(
    repeats: int, queries: int, keys: int, width: int, norm: float, data: st.DataObject
) -> None:
    first_key = data.draw(st.integers(0, keys - 1))
    q, k, v = inputs(2 * repeats, 2, queries, keys, width, norm)
    expected, nats = attended(q, k, v, 0.7, first_key)
    out, entropy = attention_with_entropy(q, k, v, 0.7, False, first_key)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(entropy.double(), nats, rtol=1e-5, atol=1e-5)
    assert entropy.max() <= math.log(keys - first_key) * (1 + 1e-6) + 1e-6


def strided(x: Tensor) -> Tensor:
    """The same values, with gaps in every dimension but the last."""
    room = torch.full([2 * size for size in x.shape[:3]] + [x.shape[3]], math.nan, dtype=x.dtype)
    view = room[::2, ::2, ::2]
    return view.copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_have_no_effect_and_the_fake_kernel_knows_the_layout(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs())
    out, entropy = attention_with_entropy(q, k, v, 1.0)
    views = strided(q), strided(k), v.transpose(2, 3).contiguous().transpose(2, 3)
    out_of_views, entropy_of_views = attention_with_entropy(*views, 1.0)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(out_of_views, out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy_of_views, entropy, rtol=1e-5, atol=1e-5)
    for result in (out, out_of_views):
        assert result.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("mean_heads", [True, False])
@pytest.mark.parametrize("first_key", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(mean_heads: bool, first_key: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs(4, 2, 6, 11, 16))
    torch.library.opcheck(OPERATOR, (q, k, v, 0.5, mean_heads, first_key))


@pytest.mark.slow
def test_inductor_keeps_it_in_one_graph_of_any_length(fresh_dynamo: None) -> None:
    def block(x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in x.chunk(3, -1))
        keys, values = (torch.cat([cache, part], 2) for part in (k, v))
        out, entropy = attention_with_entropy(q, keys, values, 0.25, True, cache.shape[2])
        return 2 * out.transpose(1, 2).flatten(2), entropy.softmax(-1)

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for queries, keys in ((5, 9), (7, 20), (11, 31)):
        x, cache = torch.randn(2, queries, 192), torch.randn(2, 4, keys, 16)
        with torch.compiler.set_stance("default" if queries == 5 else "fail_on_recompile"):
            found = compiled(x, cache)
        for one, other in zip(found, block(x, cache), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_operations_are_counted() -> None:
    q, k, v = inputs(heads=4, key_heads=4, queries=10, keys=30, width=16)
    with flop_counter() as counter:
        attention_with_entropy(q, k, v, 1.0, True, 20)
    # Logits and output over all keys; on a CPU the entropies take the logits of their keys once more.
    assert counter.get_total_flops() == 2 * 2 * 4 * 10 * 16 * (2 * 30 + 10)


@pytest.mark.parametrize(
    ("shapes", "first_key", "message"),
    [
        (((2, 4, 6, 8), (1, 4, 6, 8), (1, 4, 6, 8)), 0, "same B and E"),
        (((2, 4, 6, 8), (2, 3, 6, 8), (2, 3, 6, 8)), 0, "4 query heads: expected a multiple of the 3"),
        (((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 5, 8)), 0, "v \\[2, 4, 5, 8\\]: expected \\[2, 4, 6\\]"),
        (((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8)), 6, "first_key=6: expected 0 to 5 for 6 keys"),
    ],
)
def test_bad_arguments(shapes: tuple[tuple[int, ...], ...], first_key: int, message: str) -> None:
    q, k, v = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        attention_with_entropy(q, k, v, 1.0, True, first_key)
