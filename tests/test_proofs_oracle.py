"""Proof: a pruned generation equals one written without FX, and keeps the tokens that its options say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from toprovar_fx.criteria import (
    bernoulli_tokens,
    expand_cfg_rows,
    frequency_score,
    join_cfg_rows,
    keep_probability,
    normalise_entropy,
    random_score,
    scale_weight,
    upsample_map,
)

from .models.fixtures import NAMES
from .models.subjects import MANY, SQUARE
from .oracle_runs import compare, ranked


def expected_counts(options: dict[int, object], scale: int) -> list[int]:
    """K of layers 0 .. 3 by the documented rule: ratio times L, rounded up, two at least, 0 for 0."""
    ratios = options.get(scale, 1.0)
    length = SQUARE.tokens[scale]
    by_layer = ratios if isinstance(ratios, dict) else dict.fromkeys(range(4), ratios)
    kept = [1.0 if layer == 0 else by_layer.get(layer, 1.0) for layer in range(4)]
    return [length if r == 1 else 0 if r == 0 else max(2, math.ceil(r * length - 1e-6)) for r in kept]


def crossed(*settings: Sequence[object]) -> Iterator[object]:
    """Every model with every value of both settings, every second pair of these by night."""
    for at, name in enumerate(NAMES):
        for one, other in product(*map(enumerate, settings)):
            marks = [pytest.mark.nightly] if (at + one[0] + other[0]) % 2 else []
            yield pytest.param(name, one[1], other[1], id=f"{other[1]}-{one[1]}-{name}", marks=marks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("restore", ["residual", "cache"])
@pytest.mark.parametrize("pruned_kv", ["drop", "keep"])
def test_a_random_subset_over_a_whole_generation(name, restore, pruned_kv):
    options = {"keep": MANY, "score": "random", "restore": restore, "pruned_kv": pruned_kv, "seed": 5}
    outcome, trace = compare(name, options)
    for scale in range(1, 6):
        assert outcome.counts(scale) == expected_counts(MANY, scale)
    # Cache offsets: a layer holds what it computed, all of a scale with pruned_kv="keep".
    last = {layer: sum(expected_counts(MANY, s)[layer] for s in range(6)) for layer in range(4)}
    skipped = SQUARE.tokens[4]
    for layer in range(4):
        whole = SQUARE.ends[-1] - (skipped if layer == 3 else 0)
        assert trace.cached[5, layer] == (last[layer] if pruned_kv == "drop" else whole)
        cached = trace.cached[5, layer]
        assert outcome.state.keys[layer][:, :, :cached].abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("name", ["infinity", "prenorm-separate-rope"])
@pytest.mark.parametrize("cfg_rows", ["shared", "cond", "per_row"])
@pytest.mark.parametrize("score", ["entropy", "frequency"])
def test_several_images_with_guidance_rows(name, cfg_rows, score):
    images = 3
    outcome, _ = compare(name, {"keep": MANY, "score": score, "cfg_rows": cfg_rows}, images)
    different = False
    for keep in outcome.controller.ledger.keep_sets.values():
        cond, uncond = keep[:images], keep[images:]
        assert keep.shape[0] == 2 * images
        different |= not torch.equal(cond, uncond)
        assert (keep.diff(dim=1) > 0).all()
    assert different == (cfg_rows == "per_row")


# Which tokens are kept, by entropy source and score.


def filled(base: Tensor, keep: Tensor, values: Tensor) -> Tensor:
    """An entropy map after a pruned layer: new values where tokens were computed."""
    result = base.clone().double()
    for row, at, value in zip(result, keep, values, strict=True):
        row[at] = value
    return result


@pytest.mark.parametrize(("name", "keys", "keep_low"), crossed(["all", "scale"], [True, False]))
def test_the_last_dense_layer_ranks(name, keys, keep_low):
    keep = {4: {2: 0.5, 3: 0.25}, 5: {1: 0.5, 3: 0.3}}
    options = {"keep": keep, "entropy_source": "dense_layer", "entropy_keys": keys, "keep_low": keep_low}
    outcome, trace = compare(name, options)
    maps = trace.entropy if keys == "all" else trace.scale_entropy
    source = {(4, 2): (4, 1), (4, 3): (4, 1), (5, 1): (5, 0), (5, 3): (5, 2)}
    found = outcome.controller.ledger.keep_sets
    assert found.keys() == source.keys()
    for place, kept in found.items():
        assert torch.equal(kept, ranked(maps[source[place]], kept.shape[1], keep_low=keep_low))


@pytest.mark.parametrize("name", NAMES)
def test_the_previous_layer_ranks(name):
    outcome, trace = compare(name, {"keep": {4: 0.5, 5: 0.25}, "entropy_source": "previous_layer"})
    for scale in (4, 5):
        known = trace.entropy[scale, 0]
        for layer in (1, 2, 3):
            kept = outcome.keeps[scale, layer]
            assert torch.equal(kept, ranked(known, kept.shape[1]))
            known = filled(known, kept, trace.entropy[scale, layer])


@pytest.mark.parametrize("name", NAMES)
def test_the_previous_scale_ranks(name):
    options = {"keep": {3: 0.5, 4: 0.5, 5: 0.25}, "entropy_source": "previous_scale", "min_scale": 3}
    outcome, trace = compare(name, options)
    sides = SQUARE.sides
    for layer in (1, 2, 3):
        known = trace.entropy[2, layer]
        for scale in (3, 4, 5):
            known = upsample_map(known, sides[scale - 1], sides[scale])
            kept = outcome.keeps[scale, layer]
            assert torch.equal(kept, ranked(known, kept.shape[1]))
            known = filled(known, kept, trace.entropy[scale, layer])


@pytest.mark.parametrize(
    ("name", "cfg_rows", "restore"), crossed(["shared", "cond", "per_row"], ["cache", "residual"])
)
def test_a_layer_ranks_itself(name, cfg_rows, restore):
    options = {"keep": {4: 0.5, 5: {1: 0.25, 3: 0.4}}, "entropy_source": "same_layer"}
    options |= {"cfg_rows": cfg_rows, "restore": restore}
    outcome, trace = compare(name, options, images=2, where="attention")
    for place, kept in outcome.controller.ledger.keep_sets.items():
        assert torch.equal(kept, ranked(trace.entropy[place], kept.shape[1], cfg_rows))
    assert outcome.counts(4) == [36, 18, 18, 18]
    assert outcome.counts(5) == [64, 16, 64, 26]
    assert all(count == SQUARE.ends[-1] for count in (trace.cached[5, layer] for layer in range(4)))


@pytest.mark.parametrize("name", NAMES)
def test_frequency_ranks_by_the_layers_own_input(name):
    outcome, trace = compare(name, {"keep": MANY, "score": "frequency"})
    for place, kept in outcome.controller.ledger.keep_sets.items():
        assert torch.equal(kept, ranked(frequency_score(trace.before[place]), kept.shape[1], keep_low=False))


def test_random_ranks_by_seed_scale_and_layer():
    name = "prenorm-fused-rope"
    sets = []
    for seed in (3, 4):
        outcome, _ = compare(name, {"keep": MANY, "score": "random", "seed": seed})
        for (scale, layer), kept in outcome.controller.ledger.keep_sets.items():
            score = random_score(seed, scale * 1024 + layer, SQUARE.tokens[scale]).expand(2, -1)
            assert torch.equal(kept, ranked(score, kept.shape[1]))
        sets.append(outcome.controller.ledger.keep_sets)
    assert not torch.equal(sets[0][5, 1], sets[1][5, 1])
    assert not torch.equal(sets[0][5, 1][:, :10], sets[0][5, 2][:, :10])


def test_bernoulli_draws_by_keep_probability():
    settings = {"keep": {5: 0.5}, "sampling": "bernoulli", "seed": 9, "alpha_min": 0.1, "alpha_max": 0.9}
    outcome, trace = compare("infinity", {**settings, "entropy_source": "dense_layer"})
    normalised = normalise_entropy(join_cfg_rows(trace.entropy[5, 0], 1, "shared"))
    for layer in (1, 2, 3):
        chance = keep_probability(normalised, 1.0, scale_weight(5, 6), 0.1, 0.9)
        drawn = expand_cfg_rows(bernoulli_tokens(chance, 32, 9, 5 * 1024 + layer), 2)
        assert torch.equal(outcome.keeps[5, layer], drawn)
