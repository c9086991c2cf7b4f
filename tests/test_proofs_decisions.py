"""Proof: depth, scope, counts and skips are those of the equations, and taps read true entropies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from toprovar_fx.criteria import (
    join_cfg_rows,
    keep_probability,
    layer_detail,
    low_entropy_ratio,
    normalise_entropy,
    scale_weight,
    sigma_ratio,
)

from .counts import keep_count
from .models.fixtures import NAMES, eager, traced
from .models.subjects import OPEN, worst
from .oracle_runs import TOLERANCE, compare, ranked
from .oracles import Trace, replay


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
        "entropy_source": "dense_layer",
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
