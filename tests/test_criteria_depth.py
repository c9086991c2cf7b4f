from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.criteria import depth_from_ratios, join_depths, low_entropy_ratio


def test_ratio_counts_tokens_strictly_below_the_mean() -> None:
    entropy = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 4.0]])
    torch.testing.assert_close(low_entropy_ratio(entropy), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 7.77])
@pytest.mark.parametrize("length", [1, 3, 1000])
def test_a_constant_map_has_ratio_zero(value: float, length: int) -> None:
    assert low_entropy_ratio(torch.full((length,), value)) == 0


@given(st.lists(st.floats(0, 9, width=32), min_size=1, max_size=30))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_ratio_lies_in_the_half_open_unit_interval_and_ignores_order(values: list[float]) -> None:
    entropy = torch.tensor(values)
    ratio = low_entropy_ratio(entropy)
    assert 0 <= ratio < 1
    torch.testing.assert_close(low_entropy_ratio(entropy.flip(0)), ratio, rtol=0, atol=1.001 / len(values))


def test_ratio_keeps_the_leading_axes_and_takes_half_precision() -> None:
    entropy = torch.rand(2, 3, 16).bfloat16()
    ratio = low_entropy_ratio(entropy)
    assert ratio.shape == (2, 3)
    assert ratio.dtype == torch.float32
    torch.testing.assert_close(ratio[1, 2], low_entropy_ratio(entropy[1, 2].float()))


RHOS = [0.0, 0.25, 0.5, 0.45, 0.3, 0.6]


@pytest.mark.parametrize(
    ("tau", "compare", "min_scale", "expected"),
    [
        (0.4, "ge", 0, 2),
        (0.5, "ge", 0, 2),
        (0.4, "ge", 3, 3),
        (0.4, "ge", 4, 5),
        (0.7, "ge", 0, None),
        (0.4, "le", 0, 0),
        (0.4, "le", 2, 4),
        (0.4, "le", 5, None),
        (0.0, "ge", 6, None),
    ],
)
def test_depth(tau: float, compare: str, min_scale: int, expected: int | None) -> None:
    assert depth_from_ratios(RHOS, tau, compare, min_scale) == expected  # type: ignore[arg-type]


def test_depth_does_not_change_when_later_scales_arrive() -> None:
    found = [depth_from_ratios(RHOS[:seen], 0.4) for seen in range(len(RHOS) + 1)]
    assert found == [None, None, None, 2, 2, 2, 2]


def test_nan_never_crosses() -> None:
    assert depth_from_ratios([float("nan")], 0.4, "ge") is None
    assert depth_from_ratios([float("nan")], 0.4, "le") is None


@pytest.mark.parametrize(
    ("depths", "expected"), [([3, 5], 5), ([3, None], None), ([None], None), ([], None), ([0], 0)]
)
def test_a_batch_has_the_latest_depth(depths: list[int | None], expected: int | None) -> None:
    assert join_depths(depths) == expected
