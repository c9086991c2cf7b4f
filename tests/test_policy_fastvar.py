"""`fastvar` equals FastVAR written plainly: per sublayer, over whole generations, batches and shapes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from toprovar_fx.analysis.blocks import read_step
from toprovar_fx.analysis.sublayers import split_blocks
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.policies.fastvar import FastVAR
from toprovar_fx.runtime.report import report_of

from .models.fixtures import NAMES, eager, traced
from .models.like_upstream import same, traced_once
from .models.subjects import SQUARE, WIDE, identical, worst
from .peer_oracles import fastvar

TOLERANCE = 2e-5
PARTS = {"infinity": 3}
# The last two scales pruned, none left out; and as published.
RUN_ALL = {"keep": {-2: 0.6, -1: 0.5}, "scale_exit": None}
SETTINGS = {"all scales": (RUN_ALL, {-2: 0.6, -1: 0.5}, 0), "published": ({}, {-4: 0.6, -3: 0.5}, 2)}


CASES = [
    *((name, setting, SQUARE, 1) for name in NAMES for setting in SETTINGS),
    *((name, "all scales", SQUARE, 2) for name in ("infinity", "prenorm-separate-rope")),
    ("infinity", "all scales", WIDE, 1),
]


@pytest.mark.parametrize(
    ("name", "setting", "schedule", "images"), CASES, ids=lambda value: str(value)[:40].split("=")[-1]
)
def test_a_generation_equals_the_plain_one(name, setting, schedule, images):
    options, keep, left_out = SETTINGS[setting]
    scales = len(schedule)
    outcome = traced(name)({"policy": "fastvar", **options}, images=images, schedule=schedule)
    logits, chosen = fastvar(
        traced(name).subject,
        {scales + at: ratio for at, ratio in keep.items()},
        range(0, 4),
        images=images,
        schedule=schedule,
        scales=scales - left_out,
    )
    parts, found = PARTS.get(name, 2), outcome.controller.ledger.keep_sets
    assert outcome.controller.policy.parts == parts
    assert {(scale, layer * parts + at) for scale, layer, at in chosen} == set(found)
    for (scale, layer, at), rows in chosen.items():
        assert rows.tolist() == found[scale, layer * parts + at].tolist()
    assert worst(outcome.logits, logits) < TOLERANCE
    assert not outcome.controller.ledger.fallbacks


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_is_the_dense_model_bit_for_bit(name):
    outcome = traced(name)({"policy": "fastvar", "keep": {-2: 1.0, -1: 1.0}, "scale_exit": None})
    assert identical(outcome.logits, eager(name).logits)
    assert {run.arm for run in outcome.controller.ledger.runs} == {"dense"}


@pytest.mark.parametrize(("layers", "expected"), [(32, range(3, 28)), (40, range(4, 35)), (4, range(0, 4))])
def test_layers_scale_with_the_depth(layers, expected):
    policy = FastVAR(Options(policy="fastvar"), SQUARE, 1, None)
    policy.adopt(3 * layers, 3)
    assert [unit for unit in range(3 * layers) if policy.is_open(unit)] == [
        3 * layer + at for layer in expected for at in range(3)
    ]


def test_options_protect_layers_in_whole_layers():
    options = {"policy": "fastvar", **RUN_ALL, "protected_layers_first": 1, "protected_layers_last": 2}
    outcome = traced("infinity")(options)
    assert {unit for _, unit in outcome.controller.ledger.keep_sets} == {3, 4, 5}
    options = {"policy": "fastvar", "scale_exit": None, "keep": {-1: {2: 0.5}}}
    assert {unit for _, unit in traced("infinity")(options).controller.ledger.keep_sets} == {6, 7, 8}


@pytest.mark.parametrize(("kind", "parts"), [("infinity", 3), ("var", 2)])
def test_upstream_models_are_cut_at_their_sublayers(kind, parts):
    """Also where sublayers share what an autocast region computes."""
    case = traced_once(kind)
    dense = case.generate(images=2)
    own = {"policy": "fastvar", "scale_exit": None, "lowering": "eager"}
    with case.accelerate({**own, "keep": {4: 1.0}}):
        assert same(case.generate(images=2), dense)
    with case.accelerate({**own, "keep": {4: 0.5}}) as handle:
        case.generate(images=2)
    ledger = handle.report.controller.ledger
    assert not handle.report.fallbacks
    assert set(ledger.keep_sets) == set(ledger.deviations) == {(4, unit) for unit in range(3 * parts)}


def test_a_budget_is_shared_out_by_the_published_ratios():
    """The last of them at scales that the paper does not prune, so that a budget may cut these too."""
    options = Options(policy="fastvar")
    policy = FastVAR(options, SQUARE, 1, None)
    assert [policy.retention(scale, 0, 1.0) for scale in range(6)] == [0.5, 0.5, 0.6, 0.5, 0.5, 0.5]


def test_a_budget_is_met():
    options = {"policy": "fastvar", "budget": 1.5, "scale_exit": None, "min_scale": -3}
    report = report_of(traced("infinity")(options).run)
    assert 1.5 <= report.flops_dense / report.flops <= 1.55


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score": "entropy"}, r"score='entropy': .* nearest valid: score='frequency'"),
        ({"depth": "online", "prune_scales": True}, r"depth='online': .* nearest valid: depth='off'"),
        ({"layer_scope": "online", "prune_layers": True}, r"layer_scope='online': .*: layer_scope='off'"),
    ],
)
def test_what_reads_entropies_is_refused(given, message):
    with pytest.raises(OptionError, match=message):
        Options(policy="fastvar", **given)


@pytest.mark.parametrize("name", NAMES)
def test_sublayers_follow_each_other(name):
    facts = read_step(traced(name).dynamic.graph)
    units, parts = split_blocks(traced(name).dynamic.graph, facts.blocks, facts.cuts, facts.dependent)
    assert len(units) == parts * len(facts.blocks)
    assert [unit.attention is not None for unit in units[:parts]] == [True] + [False] * (parts - 1)
    assert all(before.exit is after.entry for before, after in pairwise(units))
