from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx.ops import logits_entropy, masked_attention_entropy


def oracle(logits: torch.Tensor, first_key: int = 0) -> torch.Tensor:
    """Entropies [..., Lq] in float64."""
    shares = logits.double()[..., first_key:].softmax(-1)
    return -torch.xlogy(shares, shares).sum(-1)


@given(
    heads=st.integers(1, 4),
    groups=st.integers(1, 2),
    queries=st.integers(1, 9),
    keys=st.integers(2, 17),
    sharpness=st.sampled_from([0.1, 3.0, 50.0]),
    boolean=st.booleans(),
    rows=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_masked_entropies_equal_the_float64_oracle(
    heads, groups, queries, keys, sharpness, boolean, rows, dtype
):
    q = torch.randn(2, heads * groups, queries, 8).to(dtype)
    k = torch.randn(2, heads, keys, 8).to(dtype)
    mask = torch.randn(queries if rows else 1, keys)
    if boolean:
        mask = mask > 0
        mask[..., -1] = True
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if boolean else mask
    logits = sharpness * q.double() @ k.double().repeat_interleave(groups, 1).transpose(-1, -2) + bias
    for first in (0, keys - 1):
        found = masked_attention_entropy(q, k, mask, sharpness, False, first)
        torch.testing.assert_close(found.double(), oracle(logits, first), rtol=1e-4, atol=1e-4)
        mean = masked_attention_entropy(q, k, mask, sharpness, True, first)
        torch.testing.assert_close(mean, found.mean(1))
    torch.testing.assert_close(logits_entropy(logits).double(), oracle(logits).mean(1), rtol=0, atol=1e-6)


def test_a_row_without_keys_has_no_entropy():
    logits = torch.tensor([[[[-torch.inf, -torch.inf], [0.0, -torch.inf], [0.0, 0.0]]]])
    assert logits_entropy(logits).tolist() == [[0.0, 0.0, pytest.approx(math.log(2))]]


def test_heads_may_have_several_dimensions():
    logits = torch.randn(2, 3, 2, 5, 7)
    expected = oracle(logits).flatten(1, 2).mean(1)
    torch.testing.assert_close(logits_entropy(logits).double(), expected, rtol=0, atol=1e-6)
    assert logits_entropy(logits, False).shape == (2, 3, 2, 5)


def test_tiles_are_joined(monkeypatch):
    # The package's attribute of this name is the operator.
    module = sys.modules["toprovar_fx.ops.logits_entropy"]
    q, k, mask = torch.randn(2, 2, 9, 4), torch.randn(2, 2, 5, 4), torch.randn(9, 5)
    logits = torch.randn(2, 2, 9, 5)
    whole = masked_attention_entropy(q, k, mask, 1.0), logits_entropy(logits)
    monkeypatch.setattr(module, "_TILE", 40)
    for found, expected in zip(
        (masked_attention_entropy(q, k, mask, 1.0), logits_entropy(logits)), whole, strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("first_key", [-1, 5])
def test_bad_ranges_of_keys(first_key):
    with pytest.raises(ValueError, match=f"first_key={first_key}"):
        logits_entropy(torch.zeros(1, 1, 2, 5), True, first_key)
    with pytest.raises(ValueError, match=f"first_key={first_key}"):
        masked_attention_entropy(
            torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 5, 4), torch.zeros(5), 1.0, True, first_key
        )


def test_the_operators_keep_their_contract():
    torch.library.opcheck(logits_entropy, (torch.randn(2, 2, 3, 5), True, 1), test_utils="test_schema")
    torch.library.opcheck(logits_entropy, (torch.randn(2, 2, 3, 5), False), test_utils="test_faketensor")
    q, k, mask = torch.randn(2, 2, 3, 4), torch.randn(2, 1, 5, 4), torch.randn(3, 5)
    torch.library.opcheck(masked_attention_entropy, (q, k, mask, 0.5), test_utils="test_faketensor")
