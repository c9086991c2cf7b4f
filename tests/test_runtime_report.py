"""The report's floating-point operations are those that a counter sees in the eager model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from toprovar_fx.flops import flop_counter
from toprovar_fx.runtime.report import report_of

from .models.fixtures import NAMES, traced
from .models.subjects import OPEN, SQUARE, Outcome, generate
from .oracles import replay

KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.0, 2: 0.4}}


def counted(run: Callable[[], object]) -> int:
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def text_flops(name: str, images: int = 1) -> int:
    """What a generation spends before its first scale."""
    subject = traced(name).subject
    return counted(lambda: subject.state(images, SQUARE))


def eager_flops(name: str, images: int = 1) -> int:
    subject = traced(name).subject
    return counted(lambda: generate(subject, subject.model, images)) - text_flops(name, images)


def entropy_flops(outcome: Outcome, name: str, images: int = 1) -> int:
    """One product of queries and keys for every tapped layer."""
    return sum(
        2 * 2 * images * traced(name).subject.width * run.kept * (SQUARE.ends[run.scale])
        for run in outcome.controller.ledger.runs
        if run.arm == "tapped"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_dense_to_the_flop(name, images):
    report = report_of(traced(name)({"preset": "lossless"}, images=images).run)
    assert report.flops == report.flops_dense == eager_flops(name, images) > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pruned_kv", ["drop", "keep"])
def test_pruned_to_the_flop(name, pruned_kv):
    outcome = traced(name)({**OPEN, "keep": KEEP, "score": "frequency", "pruned_kv": pruned_kv})
    subject, where = traced(name).subject, "input" if pruned_kv == "drop" else "query"
    oracle = counted(lambda: replay(subject, outcome.keeps, where=where, entropies=False)) - text_flops(name)
    if pruned_kv == "keep":
        # The oracle's output projection of self-attention runs on all tokens.
        spared = [(r.tokens - r.kept) for r in outcome.controller.ledger.runs if r.arm == "pruned"]
        oracle -= sum(2 * 2 * rows * subject.width**2 for rows in spared)
    report = report_of(outcome.run)
    assert report.flops == oracle
    assert report.flops_dense == eager_flops(name)


def test_taps_cost_one_product_of_queries_and_keys():
    outcome = traced("infinity")({**OPEN, "tau": 1.0, "min_scale": 1})
    report = report_of(outcome.run)
    assert report.flops - report.flops_dense == entropy_flops(outcome, "infinity") > 0


@pytest.mark.parametrize("name", ["infinity", "prenorm-fused-rope"])
def test_scales_that_were_not_run_count_as_spared(name):
    report = report_of(traced(name)({**OPEN, "scale_exit": -2, "prune_tokens": False}).run)
    assert report.exited_at == 4
    assert report.flops_dense == eager_flops(name)
    assert report.flops < 0.6 * report.flops_dense


def test_the_report_tells_what_ran():
    outcome = traced("infinity")({**OPEN, "keep": KEEP, "score": "frequency"}, images=2)
    report = report_of(outcome.run)
    assert (4, 2, 0, 36) in report.kept
    assert (4, 1, 9, 36) in report.kept
    assert report.fire_rates == pytest.approx({"dense": 0.6, "tapped": 0, "pruned": 0.3, "skipped": 0.1})
    maps = report.keep_maps
    assert set(maps) == {3, 4, 5}
    assert maps[4].shape == (2, 6, 6)
    # Layer 0 kept all, layer 2 none, layers 1 and 3 the tokens of their keep sets.
    assert maps[4].sum() == pytest.approx(2 * (36 + 9 + 26) / 4)
    values = report.to_json()
    assert values["flops"] == report.flops < values["flops_dense"]
    assert values["options"]["score"] == "frequency"
    table = report.table()
    assert "skip" in table
    assert "25%" in table
    assert len(table.splitlines()) >= 5


def test_no_report_without_a_compiled_model():
    subject = traced("infinity").subject
    assert report_of(generate(subject, subject.model).run) is None


def test_what_is_kept_of_a_generation_holds_no_keys_and_values():
    """Reports outlive generations; a cache of gigabytes that they held would be one too many."""
    outcome = traced("infinity")({**OPEN, "keep": KEEP})
    run, caches = outcome.run, [weakref.ref(cache) for cache in outcome.state.keys]
    assert report_of(run).flops
    del outcome
    gc.collect()
    assert not any(cache() is not None for cache in caches)
