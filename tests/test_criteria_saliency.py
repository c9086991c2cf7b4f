from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.criteria import keep_probability, normalise_entropy, scale_weight
from toprovar_fx.criteria.saliency import Normalisation

ALL: list[Normalisation] = ["mean", "rank", "minmax", "literal"]
maps = st.lists(st.floats(0, 10, width=32, allow_subnormal=False), min_size=1, max_size=40).map(torch.tensor)


def test_scales_count_from_one() -> None:
    assert scale_weight(12, 13) == 1
    assert scale_weight(0, 13) == 1 / 13


def test_normalisations_of_an_example() -> None:
    entropy = torch.tensor([1.0, 3.0, 3.0, 9.0])
    expected = {
        "literal": [1 / 16, 3 / 16, 3 / 16, 9 / 16],
        "mean": [1 / 4, 3 / 4, 3 / 4, 9 / 4],
        "rank": [0.0, 0.5, 0.5, 1.0],
        "minmax": [0.0, 0.25, 0.25, 1.0],
    }
    for how in ALL:
        torch.testing.assert_close(normalise_entropy(entropy, how), torch.tensor(expected[how]))


@pytest.mark.parametrize(
    ("how", "value"), [("mean", 1.0), ("rank", 0.5), ("minmax", 0.5), ("literal", 0.125)]
)
@pytest.mark.parametrize("entropy", [0.0, 0.1, 2.5])
def test_maps_without_information(how: Normalisation, value: float, entropy: float) -> None:
    torch.testing.assert_close(normalise_entropy(torch.full((3, 8), entropy), how), torch.full((3, 8), value))


@given(maps, st.sampled_from(ALL))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_normalisation_is_finite_ordered_and_of_the_promised_size(
    entropy: torch.Tensor, how: Normalisation
) -> None:
    normalised = normalise_entropy(entropy, how)
    assert normalised.isfinite().all()
    assert (normalised >= 0).all()
    order = entropy.argsort()
    assert (normalised[order].diff() >= 0).all()
    if how == "mean":
        torch.testing.assert_close(normalised.mean(), torch.tensor(1.0))
    elif how == "literal":
        torch.testing.assert_close(normalised.sum(), torch.tensor(1.0))
    else:
        assert (normalised <= 1).all()


@pytest.mark.parametrize("how", ALL)
def test_rows_are_independent(how: Normalisation) -> None:
    entropy = torch.rand(2, 3, 10)
    torch.testing.assert_close(normalise_entropy(entropy, how)[1, 2], normalise_entropy(entropy[1, 2], how))


def test_keep_probability_follows_equation_6() -> None:
    normalised = torch.tensor([[0.0, 1.0, 4.0], [0.0, 1.0, 4.0]])
    detail = torch.tensor([1.0, 0.0])
    found = keep_probability(normalised, detail, 0.5, 0.2, 0.8)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.5, 0.0], [0.8, 0.8, 0.8]]))


def test_the_literal_formula_drops_all_tokens_alike() -> None:
    entropy = torch.rand(4096) * 9
    p_keep = keep_probability(normalise_entropy(entropy, "literal"), 1.0, 1.0, 0.4, 0.9)
    torch.testing.assert_close(p_keep, torch.full_like(p_keep, 0.6), rtol=0, atol=1e-3)


@given(maps, st.sampled_from(ALL), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_keep_probability_is_a_probability_and_falls_with_entropy(
    entropy: torch.Tensor, how: Normalisation, detail: float, weight: float, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    p_keep = keep_probability(normalise_entropy(entropy, how), detail, weight, low, high)
    assert ((p_keep >= 0) & (p_keep <= 1)).all()
    assert (p_keep[entropy.argsort()].diff() <= 0).all()
    assert (p_keep <= 1 - low + 1e-6).all()
