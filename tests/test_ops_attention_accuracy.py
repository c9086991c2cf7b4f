"""Entropies in fp32 are within 1e-5 of float64 relative to themselves, however sharp the rows are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.ops import attention_entropy, attention_with_entropy


def oracle(q: Tensor, k: Tensor, scale: float = 1.0, first_key: int = 0) -> Tensor:
    """Entropies [B, H, Lq] in float64; written so that it is exact near 0 too.

    `-sum p log p` is not: it rounds p = 1 - 1e-20 to 1.
    """
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, first_key:]
    s = scale * q.double() @ k.mT
    top, at = s.max(-1, keepdim=True)
    rest = (s - top).exp().scatter(-1, at, 0.0)
    tail = rest.sum(-1)
    return tail.log1p() - (rest * (s - top)).sum(-1) / (1 + tail)


def rows(kind: str, norm: float, k: Tensor, queries: int) -> Tensor:
    """Queries of length `norm`: random, near one key, or a key itself."""
    noise = torch.randn(k.shape[0], k.shape[1], queries, k.shape[3])
    if kind == "random":
        return norm * F.normalize(noise, dim=-1)
    near = k[:, :, torch.arange(queries) % k.shape[2]]
    share = 0.3 / math.sqrt(k.shape[3]) if kind == "near" else 0.0
    return norm * F.normalize(near + share * noise, dim=-1)


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("norm", [0.0, 1.0, 10.0, 23.0, 45.0, 100.0])
@pytest.mark.parametrize("kind", ["random", "near", "key"])
def test_relative_error(kind: str, norm: float, width: int) -> None:
    k = F.normalize(torch.randn(1, 2, 331, width), dim=-1)
    q = rows(kind, norm, k, 150)
    expected = oracle(q, k)
    assert kind == "random" or norm < 100 or expected.min() < 1e-9, "these rows are sharp"
    found = attention_entropy(q, k, 1.0, False)
    assert found.min() >= 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-35)
    with_output = attention_with_entropy(q, k, k, 1.0, False)[1]
    assert torch.equal(with_output, found)
    mean = attention_entropy(q, k, 1.0, True)
    torch.testing.assert_close(mean.double(), expected.mean(1), rtol=1e-5, atol=1e-35)


@given(
    keys=st.integers(1, 90),
    queries=st.integers(1, 9),
    groups=st.integers(1, 3),
    norm=st.sampled_from([0.0, 3.0, 40.0, 100.0, 1e4]),
    kind=st.sampled_from(["random", "near", "key"]),
    strided=st.booleans(),
    data=st.data(),
)
def test_any_shape(
    keys: int, queries: int, groups: int, norm: float, kind: str, strided: bool, data: st.DataObject
) -> None:
    first_key = data.draw(st.integers(0, keys - 1))
    k = F.normalize(torch.randn(2, 2, keys, 24), dim=-1)
    q = rows(kind, norm, k, queries).repeat_interleave(groups, 1)
    if strided:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        k = (
            torch.full((2, keys + 3, 2, 48), math.nan)[:, :keys, :, ::2]
            .copy_(k.transpose(1, 2))
            .transpose(1, 2)
        )
    found = attention_entropy(q, k, 0.7, False, first_key)
    assert ((found >= 0) & (found <= math.log(keys - first_key) * (1 + 1e-6))).all()
    if norm <= 100:
        torch.testing.assert_close(found.double(), oracle(q, k, 0.7, first_key), rtol=1e-5, atol=1e-35)


def test_equal_keys_share_the_maximum() -> None:
    """Rows whose maximum is reached by n keys have H = log n exactly as uniform ones do."""
    k = F.normalize(torch.randn(1, 1, 40, 16), dim=-1)
    k[:, :, 5:8] = k[:, :, 5:6]
    found = attention_entropy(1000 * k[:, :, 5:6], k, 1.0)
    torch.testing.assert_close(found, torch.full((1, 1), math.log(3)), rtol=1e-6, atol=0)


def test_sharp_and_flat_heads_side_by_side() -> None:
    k = F.normalize(torch.randn(2, 4, 200, 32), dim=-1)
    q = rows("near", 1.0, k, 60) * torch.tensor([1.0, 100.0, 8.0, 60.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(
        attention_entropy(q, k, 1.0, False).double(), oracle(q, k), rtol=1e-5, atol=1e-35
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_taken_as_they_are(dtype: torch.dtype) -> None:
    k = F.normalize(torch.randn(1, 2, 150, 32), dim=-1).to(dtype)
    q = rows("near", 100.0, k.float(), 80).to(dtype)
    torch.testing.assert_close(
        attention_entropy(q, k, 1.0, False).double(), oracle(q, k), rtol=1e-5, atol=1e-35
    )


def test_opcheck_of_sharp_strided_grouped_inputs() -> None:
    k = F.normalize(torch.randn(2, 11, 2, 8), dim=-1).transpose(1, 2)
    q = 100 * k[:, :, :6].repeat_interleave(2, 1)
    torch.library.opcheck(torch.ops.toprovar.attention_entropy.default, (q, k, 1.0, False, 3))
    torch.library.opcheck(torch.ops.toprovar.attention_with_entropy.default, (q, k, k, 1.0, True, 3))
