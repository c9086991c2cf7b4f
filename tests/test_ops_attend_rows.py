"""Attention over a cache of which only the device knows how much is filled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toprovar_fx.ops.attend_rows import _masked_entropy, attend_masked, attend_rows
from toprovar_fx.ops.attention_entropy import attention_entropy

SLOTS, MOST = 40, 24


def operands(heads: int, own: int, rows: int, device: str = "cpu") -> list[Tensor]:
    """q, caches and new rows; the cache rows that are not filled hold large values."""
    shapes = [
        (2, heads, 7, 16),
        (2, own, SLOTS, 16),
        (2, own, SLOTS, 16),
        (2, own, rows, 16),
        (2, own, rows, 16),
    ]
    return [3 * torch.randn(shape, device=device) for shape in shapes]


def written(cache: Tensor, rows: Tensor, filled: int) -> Tensor:
    """What a model that writes its cache reads from it."""
    cache = cache.clone()
    cache[:, :, filled : filled + rows.shape[2]] = rows
    return cache[:, :, : filled + rows.shape[2]]


@pytest.mark.parametrize("filled", [0, 1, 13, 24])
@pytest.mark.parametrize(("heads", "own"), [(4, 4), (4, 2)])
def test_as_a_cache_that_was_written_first(filled, heads, own):
    q, k_cache, v_cache, k, v = operands(heads, own, 9)
    before = k_cache.clone(), v_cache.clone()
    keys, values = written(k_cache, k, filled), written(v_cache, v, filled)
    expected = F.scaled_dot_product_attention(q, keys, values, scale=0.3, enable_gqa=heads != own)
    count = torch.tensor(filled)
    found, none = attend_rows(q, k_cache, v_cache, k, v, count, MOST, 0.3, False, False)
    assert torch.equal(found, expected)
    assert none.shape == (2, 0)
    assert torch.equal(k_cache, before[0]) and torch.equal(v_cache, before[1])
    for own_keys in (False, True):
        found, entropy = attend_rows(q, k_cache, v_cache, k, v, count, MOST, 0.3, True, own_keys)
        assert torch.equal(found, expected)
        assert torch.equal(entropy, attention_entropy(q, keys, 0.3, True, filled if own_keys else 0))


def test_the_entropy_of_masked_keys():
    q, _, _, k, _ = operands(4, 2, 30)
    counted = torch.arange(30) % 3 > 0
    found = _masked_entropy(q, k, 0.3, counted)
    torch.testing.assert_close(found, attention_entropy(q, k[:, :, counted], 0.3), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("filled", [0, 13, 24])
@pytest.mark.parametrize("own_keys", [False, True])
def test_without_reading_how_much_is_filled(filled, own_keys):
    """What runs on CUDA, on a CPU."""
    given = (*operands(4, 2, 9), torch.tensor(filled), MOST, 0.3, True, own_keys)
    for found, expected in zip(attend_masked(*given), attend_rows(*given), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_the_operator_is_well_formed():
    arguments = (*operands(4, 2, 9), torch.tensor(13), MOST, 0.3, True, True)
    torch.library.opcheck(attend_rows, arguments)
    torch.library.opcheck(attend_rows, (*operands(4, 4, 9), torch.tensor(13), MOST, 0.3, False, False))


@pytest.mark.gpu
@pytest.mark.parametrize("filled", [0, 13, 24])
@pytest.mark.parametrize("own_keys", [False, True])
def test_on_cuda_nobody_waits(filled, own_keys):
    given = operands(4, 2, 9)
    expected = attend_rows(*given, torch.tensor(filled), MOST, 0.3, True, own_keys)
    moved, count = [value.cuda() for value in given], torch.tensor(filled).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = attend_rows(*moved, count, MOST, 0.3, True, own_keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left.cpu(), right, atol=2e-5, rtol=1e-4)
