"""Proof: a pruned generation equals one written without FX, and its decisions are those of the criteria."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from toprovar_fx.criteria import (
    bernoulli_tokens,
    expand_cfg_rows,
    frequency_score,
    join_cfg_rows,
    keep_count,
    keep_probability,
    layer_detail,
    low_entropy_ratio,
    normalise_entropy,
    prunability,
    random_score,
    scale_weight,
    select_tokens,
    sigma_ratio,
    upsample_map,
)

from .models.fixtures import NAMES, eager, traced
from .models.subjects import MANY, OPEN, SQUARE, Outcome, worst
from .oracles import Trace, Where, replay

TOLERANCE = 2e-5


def compare(
    name: str, options: dict[str, object], images: int = 1, where: Where | None = None
) -> tuple[Outcome, Trace]:
    """Run the backend, replay its keep sets in the oracle, and compare the whole generation."""
    outcome = traced(name)({**OPEN, **options}, images=images)
    controller = outcome.controller
    settings = controller.options
    if where is None:
        where = "query" if settings.pruned_kv == "keep" else "input"
    trace = replay(
        traced(name).subject,
        outcome.keeps,
        images=images,
        where=where,
        restore=settings.restore,
        scales=len(outcome.logits),
    )
    assert worst(outcome.logits, trace.logits) < TOLERANCE
    assert not controller.ledger.fallbacks
    return outcome, trace


def expected_counts(options: dict[int, object], scale: int) -> list[int]:
    """K of layers 0 .. 3 by the documented rule: ratio times L, rounded up, two at least, 0 for 0."""
    ratios = options.get(scale, 1.0)
    length = SQUARE.tokens[scale]
    by_layer = ratios if isinstance(ratios, dict) else dict.fromkeys(range(4), ratios)
    kept = [1.0 if layer == 0 else by_layer.get(layer, 1.0) for layer in range(4)]
    return [length if r == 1 else 0 if r == 0 else max(2, math.ceil(r * length - 1e-6)) for r in kept]


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


def ranked(statistic: Tensor, count: int, rule: str = "shared", keep_low: bool = True) -> Tensor:
    joined = join_cfg_rows(statistic, len(statistic) // 2, rule)
    return expand_cfg_rows(select_tokens(-prunability(joined, keep_low), count), len(statistic))


def filled(base: Tensor, keep: Tensor, values: Tensor) -> Tensor:
    """An entropy map after a pruned layer: new values where tokens were computed."""
    result = base.clone().double()
    for row, at, value in zip(result, keep, values, strict=True):
        row[at] = value
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keys", ["all", "scale"])
@pytest.mark.parametrize("keep_low", [True, False])
def test_the_last_dense_layer_ranks(name, keys, keep_low):
    keep = {4: {2: 0.5, 3: 0.25}, 5: {1: 0.5, 3: 0.3}}
    outcome, trace = compare(name, {"keep": keep, "entropy_keys": keys, "keep_low": keep_low})
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cfg_rows", ["shared", "cond", "per_row"])
@pytest.mark.parametrize("restore", ["cache", "residual"])
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
    outcome, trace = compare("infinity", settings)
    normalised = normalise_entropy(join_cfg_rows(trace.entropy[5, 0], 1, "shared"))
    for layer in (1, 2, 3):
        chance = keep_probability(normalised, 1.0, scale_weight(5, 6), 0.1, 0.9)
        drawn = expand_cfg_rows(bernoulli_tokens(chance, 32, 9, 5 * 1024 + layer), 2)
        assert torch.equal(outcome.keeps[5, layer], drawn)


# Depth, scope and counts by the equations.


@pytest.fixture(scope="module")
def dense_trace() -> Callable[[str], Trace]:
    found: dict[str, Trace] = {}

    def get(name: str) -> Trace:
        if name not in found:
            found[name] = replay(traced(name).subject)
            assert worst(found[name].logits, eager(name).logits) < TOLERANCE
        return found[name]

    return get


def rho(trace: Trace, scale: int, layers: tuple[int, ...] = (0, 1, 2, 3)) -> float:
    maps = [join_cfg_rows(trace.entropy[scale, layer], 1, "shared") for layer in layers]
    return float(torch.stack([low_entropy_ratio(each) for each in maps]).mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compare_by", ["ge", "le"])
@pytest.mark.parametrize("layers", ["all", "late", (1, -1)])
def test_depth_is_where_rho_crosses_tau(name, compare_by, layers, dense_trace):
    trace = dense_trace(name)
    watched = {"all": (0, 1, 2, 3), "late": (2, 3), (1, -1): (1, 3)}[layers]
    rhos = {scale: rho(trace, scale, watched) for scale in range(1, 6)}
    # A threshold that scale 3, and no scale before it, reaches; or none at all.
    low, high = min(rhos[1], rhos[2]), max(rhos[1], rhos[2])
    tau = rhos[3]
    reached = tau > high if compare_by == "ge" else tau < low
    first = 1 if reached else 3
    options = {"tau": tau, "depth_compare": compare_by, "depth_layers": layers, "min_scale": first}
    outcome, _ = compare(name, options)
    assert outcome.controller.depth == 3
    measured = outcome.controller.ledger.rho
    assert set(measured) == set(range(first, 4))
    assert all(value == pytest.approx(rhos[scale], abs=1e-6) for scale, value in measured.items())
    assert "pruned" not in outcome.arms(3)
    assert outcome.arms(4)[1:] == ["pruned"] * 3


def test_depth_that_is_never_reached_prunes_nothing():
    outcome, _ = compare("infinity", {"tau": 1.0, "min_scale": 1})
    assert outcome.controller.depth is None
    assert all(arm in ("tapped", "dense") for scale in range(1, 6) for arm in outcome.arms(scale))


@pytest.mark.parametrize("prune_from", ["after", "at"])
def test_prune_from(prune_from):
    options = {"depth": "fixed", "depth_scale": 3, "prune_from": prune_from}
    outcome, _ = compare("infinity", options)
    first = 4 if prune_from == "after" else 3
    for scale in range(1, 6):
        assert ("pruned" in outcome.arms(scale)) == (scale >= first)


def test_without_the_scale_axis_pruning_begins_at_min_scale():
    outcome, _ = compare("infinity", {"prune_scales": False, "min_scale": 3})
    assert [("pruned" in outcome.arms(scale)) for scale in range(1, 6)] == [False, False, True, True, True]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (2, 1), (3, 0), (2, 2)])
def test_protected_layers_never_prune(first, last):
    options = {"keep": {3: 0.5, 4: 0.5, 5: 0.5}, "entropy_source": "previous_scale", "min_scale": 3}
    options |= {"protected_layers_first": first, "protected_layers_last": last}
    outcome, _ = compare("prenorm-fused-rope", options)
    for scale in (3, 4, 5):
        expected = [first <= layer < 4 - last for layer in range(4)]
        assert [arm == "pruned" for arm in outcome.arms(scale)] == expected


@pytest.mark.parametrize("name", ["infinity", "prenorm-fused-rope"])
@pytest.mark.parametrize("how", ["mean", "rank", "minmax", "literal"])
def test_counts_follow_equation_6(name, how):
    buckets = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    options = {"depth": "fixed", "depth_scale": 3, "normalise": how, "buckets": buckets}
    options |= {
        "layer_scope": "fixed",
        "scope_values": (1.0, 0.9, 0.2, 0.6),
        "alpha_min": 0.2,
        "alpha_max": 0.7,
    }
    outcome, trace = compare(name, options, images=2)
    for scale in (4, 5):
        entropy = join_cfg_rows(trace.entropy[scale, 0], 2, "shared")
        for layer, scope in ((1, 0.9), (2, 0.2), (3, 0.6)):
            normalised = normalise_entropy(entropy, how)
            chance = keep_probability(normalised, scope, scale_weight(scale, 6), 0.2, 0.7)
            count = keep_count(chance, (*buckets, 1.0), 0.1)
            assert outcome.counts(scale)[layer] == count
            assert torch.equal(outcome.keeps[scale, layer], ranked(trace.entropy[scale, 0], count))


@pytest.mark.parametrize("scope_of", ["entropy_map", "tokens"])
@pytest.mark.parametrize("centre", [False, True])
def test_layer_scope_of_this_image(scope_of, centre, dense_trace):
    options = {"scope_of": scope_of, "scope_centre": centre, "beta": 0.3, "representative_scale": 0.5}
    outcome, _ = compare("infinity", {"depth": "fixed", "depth_scale": 3, **options})
    trace, found = dense_trace("infinity"), outcome.controller.ledger.detail
    assert set(found) == {0, 1, 2, 3}
    for layer, value in found.items():
        if scope_of == "entropy_map":
            matrix = trace.entropy[2, layer].unflatten(1, (3, 3))
        else:
            matrix = trace.after[2, layer]
        assert value == pytest.approx(float(layer_detail(sigma_ratio(matrix, centre), 0.3).mean()), abs=1e-3)


def test_layers_of_low_retention_are_skipped():
    options = {
        "depth": "fixed",
        "depth_scale": 3,
        "layer_scope": "fixed",
        "scope_values": (0.0, 0.0, 1.0, 0.0),
    }
    options |= {"alpha_min": 0.3, "alpha_max": 1.0, "layer_skip_below": 0.5}
    outcome, _ = compare("infinity", options)
    assert outcome.arms(4)[1:] == ["pruned", "skipped", "pruned"]
    assert outcome.arms(5)[1:] == ["pruned", "skipped", "pruned"]
    only_layers, _ = compare("infinity", {**options, "prune_tokens": False})
    assert [run == "skipped" for run in only_layers.arms(5)] == [False, False, True, False]
    assert only_layers.counts(5) == [64, 64, 0, 64]


def test_pruned_tokens_get_the_update_of_the_last_scale_that_ran_whole():
    # Equation 6 keeps everything at scale 4 (phi = 5/6) and half at scale 5, which must use scale 4's update.
    options = {"depth": "fixed", "depth_scale": 3, "buckets": (0.5,), "alpha_min": 0.2, "alpha_max": 0.8}
    options |= {"layer_scope": "fixed", "scope_values": (0.52,)}
    outcome, _ = compare("infinity", options)
    assert outcome.counts(4) == [36] * 4
    assert outcome.counts(5) == [64, 32, 32, 32]


@pytest.mark.parametrize("restore", ["cache", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_skipped_layers(name, restore):
    keep = {3: {1: 0.0}, 4: {1: 0.5, 2: 0.0}, 5: 0.0}
    outcome, trace = compare(name, {"keep": keep, "score": "random", "restore": restore})
    assert outcome.arms(3) == ["dense", "skipped", "dense", "dense"]
    assert outcome.arms(5) == ["dense", "skipped", "skipped", "skipped"]
    if restore == "residual":
        assert torch.equal(trace.before[5, 1], trace.after[5, 3])


@pytest.mark.parametrize("wanted", [3, -1, "depth"])
def test_scale_exit(wanted):
    options: dict[str, object] = {"scale_exit": wanted}
    if wanted == "depth":
        options |= {"depth": "fixed", "depth_scale": 3}
    outcome, _ = compare("infinity", options)
    scales = {3: 3, -1: 5, "depth": 4}[wanted]
    assert len(outcome.logits) == scales
    assert outcome.run.exited_at == scales


def test_scale_exit_after_an_online_depth(dense_trace):
    trace = dense_trace("infinity")
    # A little under rho: on another processor a token may lie on the other side of the mean.
    options = {"scale_exit": "depth", "min_scale": 3, "tau": rho(trace, 3) - 0.05, "prune_tokens": False}
    outcome, _ = compare("infinity", options)
    assert outcome.controller.depth == 3
    assert len(outcome.logits) == 4


@pytest.mark.parametrize("preset", ["criterion", "balanced", "literal"])
@pytest.mark.parametrize("name", NAMES)
def test_presets_that_prune_tokens(name, preset):
    outcome, _ = compare(name, {"preset": preset, "tau": 0.2, "scale_exit": None}, images=2)
    assert "pruned" in outcome.arms(5)


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_preset_ends_before_the_last_scale(name):
    outcome, _ = compare(name, {"preset": "fast"}, images=2)
    assert outcome.run.exited_at == 5
    # Its score reads what the layers get, so nothing is measured.
    assert set(outcome.arms(3)) == {"dense"}
    assert "pruned" in outcome.arms(4)


# The entropy tap.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keys", ["all", "scale"])
def test_the_tap_reads_true_entropies_and_changes_nothing(name, keys, dense_trace, observed):
    outcome = traced(name)({**OPEN, "tau": 1.0, "min_scale": 1, "depth_layers": "all", "entropy_keys": keys})
    assert outcome.arms(5) == ["tapped"] * 4
    assert all(torch.equal(a, b) for a, b in zip(outcome.logits, eager(name).logits, strict=True))
    trace = dense_trace(name)
    maps = trace.entropy if keys == "all" else trace.scale_entropy
    assert observed.keys() == {(scale, layer) for scale in range(1, 6) for layer in range(4)}
    for place, entropy in observed.items():
        assert entropy.dtype == torch.float32
        torch.testing.assert_close(entropy.double(), maps[place], rtol=0, atol=2e-5)
