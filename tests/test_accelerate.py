"""`accelerate` on stand-ins for upstream models: same bits, pruning as in a plain reference, scale exits."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx import accelerate
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.passes import rows

from .cache_policies import Shuffled, registered
from .models.like_upstream import KINDS, SIDES, Case, kept_rows, same, traced_once

LOSSLESS = {"preset": "lossless", "lowering": "eager"}
OPEN = {"preset": "criterion", "lowering": "eager", "protected_layers_first": 0, "protected_layers_last": 0}
PRUNED = {**OPEN, "keep": {3: {0: 0.5, 1: 0.0}, 4: {0: 0.25, 1: 0.5, 2: 0.4}}, "score": "random"}
RANKED = {**OPEN, "keep": {3: 0.6, 4: 0.3}, "entropy_source": "previous_scale"}


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits_at_every_batch_size(kind):
    case = traced_once(kind)
    dense = {images: case.generate(images, seed=images) for images in (1, 2, 3)}
    assert not torch.equal(dense[2][-1][0], dense[2][-1][1])
    handle = case.accelerate(LOSSLESS)
    for images in (1, 2, 3, 1):
        assert same(case.generate(images, seed=images), dense[images])
    assert handle.report.images == 1
    assert {run.layer for run in handle.report.runs} == {0, 1, 2}
    assert not handle.report.fallbacks


@pytest.mark.parametrize("options", [PRUNED, RANKED, {**PRUNED, "restore": "cache", "cfg_rows": "per_row"}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_gives_what_plain_pruning_gives(kind, options):
    case = traced_once(kind)
    dense = case.generate(images=2)
    with case.accelerate(options) as handle:
        found = case.generate(images=2)
        keeps = kept_rows(handle)
        ledger = handle.report.controller.ledger
        # The permutation check ran for every pruned layer, and none failed it.
        assert ledger.deviations.keys() == ledger.keep_sets.keys()
        assert not handle.report.fallbacks
    assert len(keeps) == 5 if options is not RANKED else 6
    expected = case.plainly(keeps, images=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[-1], dense[-1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_rows_may_lie_in_any_order(kind):
    case = traced_once(kind)
    dense = case.generate(images=2)
    with registered(Shuffled), case.accelerate({**LOSSLESS, "cache_policy": Shuffled.name}) as handle:
        found = case.generate(images=2)
        assert handle.report.cached_rows and not handle.report.fallbacks
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    assert not same(found, dense)


def test_the_plain_reference_with_every_row_is_the_model():
    case = traced_once("infinity")
    keeps = {(4, layer): torch.arange(36).repeat(2, 1) for layer in range(3)}
    torch.testing.assert_close(case.plainly(keeps), case.generate(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["infinity", "infinity, unfused"])
def test_positions_are_gathered_with_the_tokens(kind, monkeypatch):
    """Without the gather of position tables the permutation check refuses the layer."""
    case = traced_once(kind)

    def first_rows(self, operand, axes, rank):
        count = self._count(kept=True)
        return self.graph.call_method("narrow", (self.mapped[operand], axes.token - rank, 0, count))

    monkeypatch.setattr(rows.Rewriter, "_gather_table", first_rows)
    handle = case.accelerate(RANKED)
    case.generate()
    assert {fallback.reason for fallback in handle.report.fallbacks} == {Reason.VERIFICATION}


@pytest.mark.parametrize("inserted", [pytest.param((-1,), marks=pytest.mark.nightly), (-2, 0)])
def test_guidance_between_layers_runs_in_the_step(inserted):
    case = traced_once("infinity")
    dense = {images: case.generate(images, cfg_insertion_layer=inserted) for images in (1, 2)}
    assert not same(dense[1], case.generate())
    handle = case.accelerate({**LOSSLESS, "keep": {4: 1.0}})
    for images in (1, 2):
        assert same(case.generate(images, cfg_insertion_layer=inserted), dense[images])
    # The layer that is followed by guidance is the only dense one.
    guided = {len(case.blocks()) + item for item in inserted if item < 0}
    assert {fallback.layer for fallback in handle.report.fallbacks} <= guided


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"scale_exit": 3}, {"scale_exit": "depth", "depth": "fixed", "depth_scale": 2}]
)
def test_a_scale_exit_leaves_the_code_sum_as_it_is(kind, options):
    case = traced_once(kind)
    dense = case.generate()
    handle = case.accelerate({"preset": "balanced", "lowering": "eager", **options})
    assert same(case.generate(), dense[:3])
    assert handle.report.exited_at == 3
    if kind == "var":
        assert torch.equal(case.model.decoded[-1], dense[2])


def test_a_limit_of_the_callers_own_holds():
    case = Case("infinity")
    dense = case.generate(trunk_scale=2)
    assert len(dense) == 2
    accelerate(case.model, LOSSLESS)
    assert same(case.generate(trunk_scale=2), dense)


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_autocast_is_kept(kind):
    """Regions without autocast inside the blocks compute what they compute in upstream's own loop."""
    case = traced_once(kind)
    with torch.autocast("cpu", torch.bfloat16):
        dense = case.generate()
    assert not same(dense, case.generate())
    case.accelerate({**OPEN, "keep": {4: 1.0}})
    with torch.autocast("cpu", torch.bfloat16):
        assert same(case.generate(), dense)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["var", "infinity"])
def test_inductor_is_close(kind):
    case = Case(kind, depth=2)
    dense = case.generate()
    handle = accelerate(case.model, {**LOSSLESS, "lowering": "inductor"})
    torch.testing.assert_close(case.generate(), dense, rtol=1e-5, atol=1e-5)
    assert handle.report.runs[-1].region.compile_seconds
    assert len(handle.report.runs) == 2 * (len(SIDES) - 1)
