from __future__ import annotations

import math
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toprovar_fx.ops import attention_entropy

from .float64_attention import entropies


def inputs(
    seed: int, q_shape: tuple[int, ...], k_shape: tuple[int, ...], sharpness: float
) -> tuple[Tensor, Tensor]:
    """Unit keys and queries of norm ``sharpness``, as in cosine attention."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(q_shape, generator=generator), dim=-1)
    k = torch.nn.functional.normalize(torch.randn(k_shape, generator=generator), dim=-1)
    return sharpness * q, k


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("first_key", [0, 37])
def test_equals_the_float64_oracle(sharpness: float, first_key: int) -> None:
    q, k = inputs(0, (2, 4, 64, 32), (2, 4, 300, 32), sharpness)
    expected = entropies(q, k, 1.0, first_key)
    heads = torch.ops.toprovar.attention_entropy(q, k, 1.0, False, first_key)
    mean = torch.ops.toprovar.attention_entropy(q, k, 1.0, True, first_key)
    assert heads.dtype == mean.dtype == torch.float32
    # At logits of 100 the fp32 logits themselves are known to about 1e-5 only.
    atol = 1e-6 + 1e-7 * sharpness
    torch.testing.assert_close(heads.double(), expected, rtol=1e-5, atol=atol)
    torch.testing.assert_close(mean.double(), expected.mean(1), rtol=1e-5, atol=atol)


def test_queries_that_are_keys_are_sharp_and_never_negative() -> None:
    _, k = inputs(1, (1, 1, 1, 16), (1, 2, 200, 16), 1.0)
    entropy = attention_entropy(100 * k, k, 1.0, False)
    assert entropy.min() >= 0
    assert entropy.median() < 1e-3
    torch.testing.assert_close(entropy.double(), entropies(100 * k, k, 1.0), rtol=1e-5, atol=1e-5)


def test_uniform_rows_have_the_logarithm_of_the_number_of_keys() -> None:
    k = torch.ones(1, 2, 77, 8)
    entropy = attention_entropy(torch.randn(1, 2, 5, 8), k, 1.0)
    torch.testing.assert_close(entropy, torch.full((1, 5), math.log(77)))


def test_one_key_gives_exactly_zero() -> None:
    q, k = inputs(2, (2, 3, 9, 16), (2, 3, 40, 16), 100.0)
    assert not attention_entropy(q, k[:, :, :1], 1.0).any()
    assert not attention_entropy(q, k, 1.0, first_key=39).any()


def test_huge_logits_stay_finite() -> None:
    q, k = inputs(3, (1, 2, 16, 16), (1, 2, 50, 16), 1e15)
    entropy = attention_entropy(q, k, 1e10)
    assert entropy.isfinite().all()
    assert entropy.max() < 1e-6


@given(
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 3),
    repeats=st.integers(1, 2),
    queries=st.integers(1, 9),
    keys=st.integers(1, 17),
    sharpness=st.sampled_from([0.0, 0.5, 5.0, 60.0]),
    tile=st.sampled_from([1, 16, 50, 2**17]),
    seed=st.integers(0, 5),
    data=st.data(),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_shape_and_tile_equals_the_oracle(
    batch: int,
    key_heads: int,
    repeats: int,
    queries: int,
    keys: int,
    sharpness: float,
    tile: int,
    seed: int,
    data: st.DataObject,
) -> None:
    q, k = inputs(seed, (batch, key_heads * repeats, queries, 8), (batch, key_heads, keys, 8), sharpness)
    first_key = data.draw(st.integers(0, keys - 1))
    # The package exports the function under the module's name.
    module = sys.modules["toprovar_fx.ops.attention_entropy"]
    with patch.object(module, "_CPU_TILE", tile):
        entropy = attention_entropy(q, k, 0.7, False, first_key)
    assert entropy.min() >= 0
    assert entropy.max() <= math.log(keys - first_key) * (1 + 1e-6) + 1e-6
    torch.testing.assert_close(entropy.double(), entropies(q, k, 0.7, first_key), rtol=1e-5, atol=1e-5)


def test_views_of_a_cache_and_transposed_queries() -> None:
    cache = torch.randn(2, 4, 90, 16)
    q = torch.randn(2, 12, 4, 16).transpose(1, 2)
    expected = attention_entropy(q.contiguous(), cache[:, :, :60].contiguous(), 0.25)
    torch.testing.assert_close(attention_entropy(q, cache[:, :, :60], 0.25), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_do_not_lose_precision_with_the_dtype(dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in inputs(4, (1, 2, 8, 16), (1, 2, 30, 16), 30.0))
    entropy = attention_entropy(q, k, 1.0)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), entropies(q, k, 1.0).mean(1), rtol=1e-5, atol=3e-6)


def test_the_rows_of_other_samples_have_no_effect() -> None:
    q, k = inputs(5, (3, 2, 20, 16), (3, 2, 50, 16), 10.0)
    whole = attention_entropy(q, k, 1.0)
    torch.testing.assert_close(attention_entropy(q[1:2], k[1:2], 1.0), whole[1:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean_heads", [True, False])
@pytest.mark.parametrize("first_key", [0, 3])
def test_opcheck(mean_heads: bool, first_key: int) -> None:
    q, k = inputs(6, (2, 4, 6, 8), (2, 2, 11, 8), 3.0)
    torch.library.opcheck(torch.ops.toprovar.attention_entropy.default, (q, k, 0.5, mean_heads, first_key))


def test_traces_with_symbolic_lengths_in_one_graph() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def entropy(q: Tensor, k: Tensor) -> Tensor:
        return attention_entropy(q, k, 1.0, True, k.shape[2] - q.shape[2])

    compiled = torch.compile(entropy, backend=count, fullgraph=True, dynamic=True)  # type: ignore[arg-type]
    for queries, keys in ((5, 9), (7, 20), (11, 31)):
        q, k = inputs(7, (2, 2, queries, 8), (2, 2, keys, 8), 3.0)
        torch.testing.assert_close(compiled(q, k), entropy(q, k))
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "first_key", "message"),
    [
        ((2, 4, 6, 8), (1, 4, 6, 8), 0, "same B and E"),
        ((2, 4, 6, 8), (2, 4, 6, 4), 0, "same B and E"),
        ((2, 6, 8), (2, 6, 8), 0, "expected \\[B, H, Lq, E\\]"),
        ((2, 4, 6, 8), (2, 3, 6, 8), 0, "4 query heads: expected a multiple of the 3"),
        ((2, 4, 6, 8), (2, 4, 6, 8), 6, "first_key=6: expected 0 to 5 for 6 keys"),
        ((2, 4, 6, 8), (2, 4, 6, 8), -1, "first_key=-1: expected 0 to 5"),
    ],
)
def test_bad_arguments(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], first_key: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention_entropy(torch.zeros(q_shape), torch.zeros(k_shape), 1.0, True, first_key)
