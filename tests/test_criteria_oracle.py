"""Every statistic against the same formula in float64, written without the package."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toprovar_fx.criteria import (
    keep_probability,
    layer_detail,
    low_entropy_ratio,
    normalise_entropy,
    select_tokens,
    sigma_ratio,
)

from .counts import keep_count

BUCKETS = (0.1, 0.25, 0.5, 0.75)
seeds = st.integers(0, 10_000)
spreads = st.sampled_from([1e-3, 0.1, 1.0])
lengths = st.integers(1, 700)


def entropies(seed: int, length: int, spread: float) -> Tensor:
    """Maps [3, L] like attention entropies: positive, around 5 nats."""
    noise = torch.randn(3, length, generator=torch.Generator().manual_seed(seed))
    return (5 + spread * noise).clamp_min(0)


@given(seeds, lengths, spreads)
def test_low_entropy_ratio(seed: int, length: int, spread: float) -> None:
    maps = entropies(seed, length, spread)
    exact = maps.double()
    below = exact < exact.mean(-1, keepdim=True)
    # Rounding decides only about tokens that lie at the mean.
    doubtful = (exact - exact.mean(-1, keepdim=True)).abs() <= 2e-6
    difference = (low_entropy_ratio(maps) - below.double().mean(-1)).abs()
    assert (difference <= doubtful.double().mean(-1) + 1e-6).all()


@given(seeds, lengths, spreads, st.floats(0, 1), st.floats(0.01, 1), st.sampled_from(["mean", "literal"]))
def test_keep_probability(seed: int, length: int, spread: float, detail: float, phi: float, how: str) -> None:
    maps = entropies(seed, length, spread)
    exact = maps.double()
    normalised = exact / exact.sum(-1, keepdim=True) * (length if how == "mean" else 1)
    q = phi * detail * normalised
    expected = 1 - (0.3 + 0.5 * q).clamp(0, 1)
    found = keep_probability(normalise_entropy(maps, how), torch.full((3,), detail), phi, 0.3, 0.8)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@given(seeds, st.integers(2, 200), spreads)
def test_rank_and_range(seed: int, length: int, spread: float) -> None:
    maps = entropies(seed, length, spread)
    exact = maps.double()
    ranks = (exact[:, None] < exact[..., None]).double().sum(-1)
    ties = (exact[:, None] == exact[..., None]).double().sum(-1) - 1
    torch.testing.assert_close(
        normalise_entropy(maps, "rank").double(), (ranks + ties / 2) / (length - 1), rtol=0, atol=1e-6
    )
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    torch.testing.assert_close(
        normalise_entropy(maps, "minmax").double(), (exact - low) / (high - low), rtol=0, atol=1e-6
    )


@given(seeds, st.integers(2, 24), st.integers(2, 24), spreads, st.floats(1e-3, 1))
def test_detail(seed: int, height: int, width: int, spread: float, beta: float) -> None:
    maps = entropies(seed, height * width, spread).unflatten(1, (height, width))
    sigma = torch.linalg.svdvals(maps.double())
    ratio = sigma[:, 0] / sigma[:, 1]
    found = layer_detail(sigma_ratio(maps), beta).double()
    # dR = -beta R d(ratio); the ratio's relative error is documented, and fp32's removal adds 1e-6 of itself.
    error = 3 * math.log(min(height, width)) / 2048 + 2e-6 * ratio
    low, high = (torch.exp(-beta * (ratio * (1 + side * error) - 1)) for side in (1, -1))
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()


@given(
    seeds,
    lengths,
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5, unique=True).map(sorted),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["mean", "max"]),
)
def test_budget(
    seed: int, length: int, buckets: list[float], min_keep: float, skip_below: float, rule: str
) -> None:
    p_keep = torch.rand(3, length, generator=torch.Generator().manual_seed(seed))
    each = p_keep.mean(-1)
    retention = float(each.mean() if rule == "mean" else each.amax())
    allowed = [min(length, math.ceil(ratio * length - 1e-6)) for ratio in buckets] + [length]
    wanted = max(math.floor(retention * length + 0.5), math.ceil(min_keep * length - 1e-6))
    expected = 0 if retention < skip_below else min(count for count in allowed if count >= wanted)
    assert keep_count(p_keep, buckets, min_keep, skip_below, rule) == expected  # type: ignore[arg-type]


def test_budgets_at_the_border_of_a_bucket() -> None:
    """A retention that is a bucket exactly must not fall into the next one."""
    for length in (10, 100, 576, 1024):
        for ratio in BUCKETS:
            p_keep = torch.full((2, length), ratio)
            assert keep_count(p_keep, BUCKETS) == math.ceil(ratio * length - 1e-6)


@given(seeds, st.integers(1, 300), st.integers(1, 9), st.data())
def test_selection_by_sorting_in_float64(seed: int, length: int, values: int, data: st.DataObject) -> None:
    scores = torch.randint(0, values, (2, length), generator=torch.Generator().manual_seed(seed)) / values
    count = data.draw(st.integers(0, length))
    found = select_tokens(scores, count)
    for row, best in zip(scores.double().tolist(), found.tolist(), strict=True):
        assert best == sorted(sorted(range(length), key=lambda index: (-row[index], index))[:count])


@pytest.mark.gpu
@pytest.mark.parametrize("values", [1, 2, 17, 10_000])
def test_ties_fall_alike_on_both_devices(values: int) -> None:
    scores = torch.randint(0, values, (4, 4096)) / values
    for count in (1, 410, 2048, 4096):
        assert torch.equal(select_tokens(scores.cuda(), count).cpu(), select_tokens(scores, count))
