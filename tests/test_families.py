"""Proofs on models put together from many layouts, positions and caches.

For every combination: what keeps everything is the untouched model bit for bit; all tokens in a random order
give the dense result (`verify="always"`, at every pruned layer and scale); a subset over several scales is
what plain PyTorch computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from toprovar_fx.analysis.caches import written_caches
from toprovar_fx.analysis.operators import operator_name
from toprovar_fx.passes.canonical_caches import canonical_caches
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.replays import caches_stay

from .cache_policies import Drawn, registered
from .models import families as parts
from .models import family_caches as caches
from .models.families import Family, plainly
from .models.family_combinations import COMBINATIONS, EVERY_LAYER, label
from .models.subjects import SQUARE, Outcome, generate, identical, worst
from .models.traced import Traced


def of(kind: type) -> Traced:
    """The combination with this cache."""
    return traced(next(each for each in COMBINATIONS if each[2] is kind))


@cache
def traced(combination: tuple[type, ...]) -> Traced:
    layer, position, kind = combination
    return Traced(Family(layer, position(), kind()))


@pytest.fixture(params=COMBINATIONS, ids=label)
def model(request) -> Traced:
    return traced(request.param)


def test_what_keeps_everything_is_the_untouched_model(model):
    outcome = model({"preset": "lossless", "strict": True})
    assert not outcome.controller.ledger.fallbacks
    assert outcome.arms(5) == ["dense"] * 3
    assert identical(outcome.logits, generate(model.subject, model.subject.model).logits)


def test_a_subset_is_what_plain_pytorch_computes(model):
    outcome = model(EVERY_LAYER)
    assert outcome.arms(4) == ["pruned", "pruned", "skipped"]
    assert outcome.arms(5) == ["pruned"] * 3
    check(outcome, model)
    assert worst(outcome.logits, plainly(model.subject, {}, SQUARE)) > 1e-2
    deviations = outcome.controller.ledger.deviations
    assert len(deviations) == 8 - 1
    assert max(deviations.values()) < (1e-5 if tolerance(model) < 1e-3 else 6e-2)


@pytest.mark.parametrize("kind", [caches.Joined, caches.Functional, caches.Stacked])
def test_a_whole_step_is_its_blocks(kind):
    model = of(kind)
    options = {**EVERY_LAYER, "score": "entropy", "entropy_source": "previous_scale", "verify": "once"}
    blocks, step = model(options), model({**options, "unit": "step"})
    assert identical(step.logits, blocks.logits)
    assert step.arms(5) == blocks.arms(5) == ["pruned"] * 3


@pytest.mark.parametrize(
    ("kind", "stays"),
    [(caches.Sliced, True), (caches.TokensFirst, True), (caches.Joined, False), (caches.Functional, False)],
)
def test_which_caches_stay_in_place(kind, stays):
    """Only such steps are recorded unless asked for."""
    of(kind)({"preset": "lossless"})
    steps = [program.step for program in of(kind).programs.values() if isinstance(program, StepProgram)]
    assert steps and {caches_stay(step) for step in steps} == {stays}


def tolerance(model: Traced) -> float:
    return 5e-2 if "HalfPrecision" in model.subject.name else 5e-5


def check(outcome: Outcome, model: Traced) -> None:
    assert worst(outcome.logits, plainly(model.subject, outcome.keeps, SQUARE)) < tolerance(model)


@pytest.mark.parametrize("kind", [caches.JoinedTokensFirst, caches.Functional])
@pytest.mark.parametrize(
    "settings", [{"pruned_kv": "keep"}, {"score": "entropy", "entropy_source": "same_layer"}]
)
def test_keys_and_values_of_pruned_tokens_may_stay(kind, settings):
    model = of(kind)
    outcome = model({**EVERY_LAYER, "restore": "residual", **settings})
    assert outcome.arms(5) == ["pruned"] * 3
    expected = plainly(model.subject, outcome.keeps, SQUARE, cached="all")
    assert worst(outcome.logits, expected) < tolerance(model)
    assert outcome.controller.caches.dropped == {2: SQUARE.tokens[4]}, (
        "a layer that is skipped writes nothing"
    )


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "settings",
    [pytest.param({"preset": "lossless"}, marks=pytest.mark.nightly), EVERY_LAYER],
    ids=["whole", "pruned"],
)
def test_cached_rows_may_go_whatever_the_form_of_the_cache(model, settings):
    outcome = model({**settings, "cache_policy": Drawn.name, "strict": True})
    expected = plainly(model.subject, outcome.keeps, SQUARE, stay=Drawn.chosen)
    assert worst(outcome.logits, expected) < tolerance(model)
    assert worst(outcome.logits, plainly(model.subject, outcome.keeps, SQUARE)) > 1e-3


@pytest.fixture
def drawn() -> Iterator[None]:
    with registered(Drawn):
        yield


def test_a_budget_is_met_with_joined_caches():
    """Prices do not depend on how long the buffers are."""
    model = of(caches.Joined)
    outcome = model({**{name: EVERY_LAYER[name] for name in EVERY_LAYER if name != "keep"}, "budget": 1.3})
    assert "pruned" in outcome.arms(5)
    check(outcome, model)


def test_the_rows_that_a_layer_left_out_are_missing_in_its_cache():
    """Joined caches keep the length that the model expects; the rows that no layer computed are zero."""
    model = traced(COMBINATIONS[0])
    outcome = model(EVERY_LAYER)
    dropped = outcome.controller.caches.dropped
    assert sorted(dropped) == [0, 1, 2]
    for layer, (keys, values) in enumerate(outcome.state.cache.rows):
        for cache_ in (keys, values):
            assert cache_.shape[2] == SQUARE.ends[-1]
            filled = cache_.abs().sum((0, 1, 3)) > 0
            assert int(filled.sum()) == SQUARE.ends[-1] - dropped[layer]
            assert filled[: int(filled.sum())].all()


def test_a_joined_cache_becomes_a_buffer_that_leaves_the_graph():
    model = traced(COMBINATIONS[0])
    model({"preset": "lossless"})
    last = model.graphs[-1]
    before = last.code
    graph = canonical_caches(last.graph)
    assert last.code == before
    assert not [node for node in graph.nodes if operator_name(node) == "cat" and node.users]
    writes = written_caches(graph)
    assert len(writes) == 2 * parts.DEPTH
    leaving = graph.output_node().all_input_nodes
    assert all(cache in leaving and operator_name(cache) == "pad" for cache in writes)
    assert canonical_caches(graph) is graph


@pytest.mark.parametrize("kind", [caches.Sliced, caches.TokensFirst])
def test_a_cache_that_is_canonical_stays_as_it_is(kind):
    model = of(kind)
    model({"preset": "lossless"})
    graph = model.graphs[-1].graph
    assert canonical_caches(graph) is graph


@pytest.mark.nightly
@pytest.mark.parametrize("at", [0, 1])
def test_joined_caches_through_inductor(at, fresh_dynamo):
    model = Traced(Family(*(part() if index else part for index, part in enumerate(COMBINATIONS[at]))))
    outcome = model({**EVERY_LAYER, "lowering": "inductor"})
    assert outcome.arms(5) == ["pruned"] * 3
    check(outcome, model)
