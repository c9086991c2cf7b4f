from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.criteria import restore_delta, upsample_map
from toprovar_fx.criteria.restore import scatter_rows, scatter_rows_together


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_restore_equals_area_interpolation(h: int, w: int, h2: int, w2: int) -> None:
    delta = torch.randn(2, h * w, 5)
    grid = delta.reshape(2, h, w, 5).permute(0, 3, 1, 2).contiguous()
    expected = F.interpolate(grid, size=(h2, w2), mode="area").flatten(2).transpose(1, 2)
    torch.testing.assert_close(restore_delta(delta, (h, w), (h2, w2)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_restore_keeps_the_dtype_and_does_not_alias(dtype: torch.dtype) -> None:
    delta = torch.randn(2, 12, 5).to(dtype)
    same = restore_delta(delta, (3, 4), (3, 4))
    assert same.dtype == dtype
    assert torch.equal(same, delta)
    assert same.untyped_storage().data_ptr() != delta.untyped_storage().data_ptr()


def test_restore_of_a_doubled_map_repeats_every_token() -> None:
    delta = torch.arange(4.0).reshape(1, 4, 1)
    restored = restore_delta(delta, (2, 2), (4, 4)).reshape(4, 4)
    assert torch.equal(
        restored, torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


def test_tokens_that_were_not_computed_keep_their_entropy_or_get_the_mean() -> None:
    keep, rows = torch.tensor([[1, 3]]), torch.tensor([[2.0, 6.0]])
    known = torch.tensor([[7.0, 8.0, 9.0, 10.0]])
    assert scatter_rows(known, keep, rows, 4).tolist() == [[7.0, 2.0, 9.0, 6.0]]
    assert scatter_rows(None, keep, rows, 4).tolist() == [[4.0, 2.0, 4.0, 6.0]]


@pytest.mark.parametrize("mode", ["bilinear", "area"])
def test_upsampling_keeps_constants_rows_and_range(mode: str) -> None:
    maps = torch.rand(3, 12)
    maps[1] = 2.5
    resized = upsample_map(maps, (3, 4), (6, 9), mode)  # type: ignore[arg-type]
    assert resized.shape == (3, 54)
    torch.testing.assert_close(resized[1], torch.full((54,), 2.5))
    assert resized.min() >= maps.min()
    assert resized.max() <= maps.max()


def test_upsampling_is_row_major() -> None:
    ramp = torch.arange(4.0).repeat(3, 1).reshape(1, 12)  # grows along the width
    resized = upsample_map(ramp.bfloat16(), (3, 4), (6, 8)).reshape(6, 8)
    assert resized.dtype == torch.float32
    assert (resized.diff(dim=1) >= 0).all()
    assert not resized.diff(dim=0).any()


def test_maps_of_several_layers_are_those_of_each():
    known = list(torch.rand(3, 2, 9))
    keep = [torch.stack([torch.randperm(9)[:4].sort().values for _ in range(2)]) for _ in range(3)]
    rows = list(torch.rand(3, 2, 4))
    found = scatter_rows_together(known, keep, rows)
    for at, (base, kept, nats) in enumerate(zip(known, keep, rows, strict=True)):
        assert torch.equal(found[at], scatter_rows(base, kept, nats, 9))
