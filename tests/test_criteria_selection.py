from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.criteria import bernoulli_tokens, counter_uniform, round_to_bucket, select_tokens

from .counts import keep_count

BUCKETS = (0.1, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("retention", "length", "expected"),
    [
        (0.0, 1024, 103),
        (0.1, 1024, 103),
        (0.11, 1024, 256),
        (0.25, 1024, 256),
        (0.5004, 1024, 512),  # 512.4 rounds to 512
        (0.5006, 1024, 768),  # 512.6 rounds to 513
        (0.76, 1024, 1024),
        (1.0, 1024, 1024),
        (0.1, 10, 1),
        (0.3, 1, 1),
    ],
)
def test_round_to_bucket(retention: float, length: int, expected: int) -> None:
    assert round_to_bucket(retention, length, BUCKETS) == expected


def test_one_is_an_implied_bucket() -> None:
    assert round_to_bucket(0.6, 100, (0.5,)) == 100
    assert round_to_bucket(0.6, 100, ()) == 100


def test_products_that_round_up_do_not_miss_their_bucket() -> None:
    assert round_to_bucket(0.7, 10, (0.7,)) == 7
    assert all(round_to_bucket(p / 100, 100, (p / 100,)) == p for p in range(1, 101))


def test_the_minimum_and_the_layer_skip() -> None:
    assert round_to_bucket(0.05, 100, BUCKETS, min_keep=0.2) == 25
    assert round_to_bucket(0.05, 100, BUCKETS, min_keep=0.2, skip_below=0.06) == 0
    assert round_to_bucket(0.06, 100, BUCKETS, skip_below=0.06) == 10


@given(
    retention=st.floats(0, 1),
    length=st.integers(1, 5000),
    buckets=st.lists(st.floats(0.01, 1), min_size=1, max_size=5, unique=True).map(sorted),
    min_keep=st.floats(0, 1),
)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_count_is_a_bucket_that_holds_the_wanted_tokens(
    retention: float, length: int, buckets: list[float], min_keep: float
) -> None:
    count = round_to_bucket(retention, length, buckets, min_keep)
    assert 1 <= count <= length
    assert count >= math.floor(retention * length + 0.5)
    assert count >= min_keep * length - 1e-6
    assert count in {min(length, math.ceil(ratio * length - 1e-6)) for ratio in (*buckets, 1.0)}
    assert round_to_bucket(retention, length, [*buckets[:-1]], min_keep) >= count


def test_keep_count_joins_samples() -> None:
    p_keep = torch.tensor([[0.2] * 50, [0.6] * 50])
    assert keep_count(p_keep, BUCKETS) == 25
    assert keep_count(p_keep, BUCKETS, rule="max") == 38
    assert keep_count(p_keep[0], BUCKETS) == 13
    assert keep_count(p_keep, BUCKETS, skip_below=0.5) == 0
    assert keep_count(torch.ones(2, 3, 7), BUCKETS) == 7


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_selected_tokens_are_the_best_and_ties_go_to_the_lower_index(
    values: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    chosen = select_tokens(torch.tensor(values), count)
    expected = sorted(sorted(range(len(values)), key=lambda index: (-values[index], index))[:count])
    assert chosen.tolist() == expected
    assert chosen.dtype == torch.int64


def test_selection_keeps_leading_axes() -> None:
    score = torch.rand(2, 3, 20)
    chosen = select_tokens(score, 7)
    assert chosen.shape == (2, 3, 7)
    assert torch.equal(chosen[1, 2], select_tokens(score[1, 2], 7))
    assert torch.equal(select_tokens(score, 20), torch.arange(20).expand(2, 3, 20))


def test_infinities_are_ranked_and_nan_comes_last() -> None:
    score = torch.tensor([float("nan"), -math.inf, 3.0, math.inf])
    assert select_tokens(score, 2).tolist() == [2, 3]
    assert select_tokens(torch.tensor([math.nan, -1e38, 2.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("count", [-1, 6])
def test_selection_rejects_impossible_counts(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count}: expected 0 to 5 of 5 tokens"):
        select_tokens(torch.rand(5), count)


def test_drawn_tokens_contain_the_certain_and_not_the_impossible() -> None:
    p_keep = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.5, 0.0]).expand(200, 6)
    drawn = bernoulli_tokens(p_keep, 3, torch.arange(200), 0)
    hit = torch.zeros(200, 6).scatter(1, drawn, 1)
    assert hit[:, [0, 3]].all()
    assert not hit[:, [2, 5]].any()


def test_drawn_tokens_are_those_of_the_coins_up_to_the_count() -> None:
    p_keep = torch.rand(100, 40)
    seeds = torch.arange(100)
    coins = counter_uniform(seeds, 5, 40) < p_keep
    for row in range(100):
        drawn = set(bernoulli_tokens(p_keep[row], 20, int(seeds[row]), 5).tolist())
        kept = set(coins[row].nonzero().flatten().tolist())
        assert drawn <= kept or kept <= drawn


def test_drawing_frequencies_follow_the_probabilities() -> None:
    p_keep = torch.linspace(0.1, 0.9, 21)
    seeds = torch.arange(4000)
    # The count is the expected number of tokens, 10.5, rounded.
    drawn = bernoulli_tokens(p_keep.expand(4000, 21), 10, seeds, 3)
    frequency = torch.zeros(4000, 21).scatter(1, drawn, 1).mean(0)
    torch.testing.assert_close(frequency, p_keep, rtol=0, atol=0.05)


def test_drawing_depends_on_seed_and_stream_only() -> None:
    p_keep = torch.full((3, 50), 0.5)
    seeds = torch.tensor([7, 8, 9])
    drawn = bernoulli_tokens(p_keep, 25, seeds, 1)
    assert torch.equal(drawn[1], bernoulli_tokens(p_keep[1], 25, 8, 1))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, bernoulli_tokens(p_keep, 25, seeds, 2))
