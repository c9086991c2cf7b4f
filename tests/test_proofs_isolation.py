"""Proof: nothing of one generation reaches another that follows it, replaces it or runs beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from toprovar_fx.runtime.generation import current_generation

from .models.fixtures import eager, traced
from .models.subjects import (
    MANY_GRAPHS,
    OPEN,
    SQUARE,
    WIDE,
    Outcome,
    TinyInfinity,
    TinyPreNorm,
    generate,
    identical,
    worst,
)
from .models.traced import Traced
from .oracles import replay
from .side_by_side import in_threads

BUSY = {**OPEN, "min_scale": 2, "tau": 0.2, "entropy_source": "previous_layer", "scope_of": "tokens"}
SETTINGS = [
    BUSY,
    {**OPEN, "keep": {3: 0.5, 4: 0.25, 5: {1: 0.0, 2: 0.5}}, "restore": "residual"},
    {**OPEN, "preset": "literal"},
    {**OPEN, "keep": {4: 0.5, 5: 0.3}, "entropy_source": "same_layer"},
]


@pytest.fixture(params=["infinity", "prenorm-fused-rope"])
def model(request) -> Traced:
    return traced(request.param)


def same_story(left: Outcome, right: Outcome) -> bool:
    """Equal results, decisions and cache contents."""
    return (
        identical(left.logits, right.logits)
        and left.controller.depth == right.controller.depth
        and [(r.scale, r.layer, r.arm, r.kept) for r in left.controller.ledger.runs]
        == [(r.scale, r.layer, r.arm, r.kept) for r in right.controller.ledger.runs]
    )


@pytest.mark.parametrize("options", SETTINGS)
def test_two_generations_in_a_row(model, options):
    first, second = model(options), model(options)
    assert "pruned" in first.arms(5)
    assert same_story(first, second)
    other = model(options, seed=2)
    assert worst(other.logits, first.logits) > 1e-3
    assert same_story(model(options), first)


def test_several_settings_of_one_model_do_not_mix(model):
    alone = [model(options) for options in SETTINGS]
    for before, options in reversed(list(zip(alone, SETTINGS, strict=True))):
        assert same_story(model(options), before)


def check_against_oracle(model: Traced, outcome: Outcome, images: int, schedule) -> None:
    trace = replay(model.subject, outcome.keeps, images=images, schedule=schedule)
    assert worst(outcome.logits, trace.logits) < 2e-5


def test_batch_and_resolution_may_change_and_change_back(model):
    options = {**OPEN, "keep": {-2: 0.5, -1: {1: 0.25, 2: 0.0, 3: 0.6}}, "entropy_source": "dense_layer"}
    first = model(options)
    for images, schedule in ((3, SQUARE), (1, WIDE), (2, WIDE), (1, SQUARE.first(4))):
        outcome = model(options, images=images, schedule=schedule)
        assert outcome.arms(len(schedule) - 1) == ["tapped", "pruned", "skipped", "pruned"]
        assert {run.tokens for run in outcome.controller.ledger.runs} == set(schedule.tokens[1:])
        check_against_oracle(model, outcome, images, schedule)
    assert same_story(model(options), first)


def test_an_interrupted_generation_leaves_nothing(model):
    before = model(BUSY)
    for scale in range(1, 6):
        with pytest.raises(KeyboardInterrupt):
            model(BUSY, fail_at=scale)
        assert current_generation() is None
    assert same_story(model(BUSY), before)


def test_without_a_generation_everything_is_dense(model):
    subject = model.subject
    model.options = {"lowering": "eager", **SETTINGS[1]}
    subject.use(SQUARE)
    with torch.inference_mode(), MANY_GRAPHS:
        state = subject.state(1, SQUARE)
        logits = [
            model.compiled(*subject.arguments(subject.hidden(1, s, SQUARE), state, SQUARE.ends[s]))
            for s in range(6)
        ]
    assert identical(logits, eager(subject.name).logits)


@pytest.fixture(scope="module")
def pair() -> Iterator[list[tuple[TinyInfinity | TinyPreNorm, object]]]:
    """Two models, compiled under the same and under different options."""
    torch.compiler.reset()
    same = {"lowering": "eager", **BUSY}
    other = {"lowering": "eager", **SETTINGS[1], "keep": {3: 0.5, 4: 0.25, 5: {1: 0.0}}}
    compiled = []
    for subject, options in (
        (TinyInfinity(), same),
        (TinyPreNorm(True, True), same),
        (TinyInfinity(2), other),
    ):
        compiled.append((subject, torch.compile(subject.model, backend="toprovar", options=options)))
    with MANY_GRAPHS:
        yield compiled
    torch.compiler.reset()


def test_models_side_by_side_in_threads(pair):
    alone = [generate(subject, forward) for subject, forward in pair]
    for together, before in zip(in_threads(pair), alone, strict=True):
        assert not {"pruned", "skipped"}.isdisjoint(before.arms(5))
        assert same_story(together, before)


def test_models_side_by_side_in_turns(pair):
    alone = [generate(subject, forward) for subject, forward in pair]
    for (subject, forward), before in zip(reversed(pair), reversed(alone), strict=True):
        assert same_story(generate(subject, forward), before)
