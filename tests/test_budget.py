"""`budget`: keep counts for a share of the dense FLOPs, never over it, and used up to two percent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.cost.budget import Place, Unreachable, solve_counts
from toprovar_fx.errors import OptionError
from toprovar_fx.flops import flop_counter
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.options import Options
from toprovar_fx.runtime.budget import StepBudget
from toprovar_fx.runtime.report import GenerationReport, report_of
from toprovar_fx.schedules import Schedule

from .models.fixtures import traced
from .models.subjects import OPEN, SQUARE, Outcome, TinyInfinity, generate, identical
from .models.traced import Traced

WIDE_OPEN = {**OPEN, "min_scale": 2, "min_keep": 0.02}


def reached(outcome: Outcome) -> float:
    report = report_of(outcome.run)
    assert isinstance(report, GenerationReport)
    return report.flops_dense / report.flops


@pytest.mark.parametrize(
    ("name", "target"), [("infinity", 1.5), ("infinity", 2.0), ("infinity", 3.0), ("prenorm-fused-rope", 3.0)]
)
def test_the_budget_is_met_and_used(name, target):
    given = {**WIDE_OPEN, "entropy_source": "previous_scale", "protected_layers_first": 0}
    outcome = traced(name)({**given, "budget": f"{target}x"})
    assert target <= reached(outcome) <= 1.02 * target
    assert "pruned" in outcome.arms(5)
    assert f"budget: {target:g}x asked" in report_of(outcome.run).table()


@pytest.mark.parametrize(
    "extra",
    [
        {"entropy_source": "previous_layer", "depth": "fixed", "depth_scale": 2},
        {"entropy_source": "same_layer"},
        {"score": "frequency", "protected_layers_last": 1},
        {"pruned_kv": "keep"},
        {"restore": "residual", "min_scale": 1, "normalise": "literal", "sampling": "bernoulli"},
        {"scale_exit": -1, "budget": 2.8},
        {"layer_skip_below": 0.2},
        {"preset": "balanced", "min_scale": 2},
    ],
    ids=str,
)
def test_the_budget_is_met_whatever_the_criterion(extra):
    options = {**WIDE_OPEN, "budget": 1.4, **extra}
    outcome = traced("infinity")(options)
    assert options["budget"] <= reached(outcome) <= 1.02 * options["budget"]


def test_two_images_and_a_second_generation():
    options = {**WIDE_OPEN, "budget": "2x", "prune_layers": False}
    first, second = traced("infinity")(options, images=2), traced("infinity")(options, images=2)
    assert 2 <= reached(first) <= 2.04
    assert identical(first.logits, second.logits)
    assert [first.counts(scale) for scale in range(6)] == [second.counts(scale) for scale in range(6)]


def test_global_layers_keep_more():
    outcome = traced("infinity")({**WIDE_OPEN, "budget": 1.5, "budget_order": "even", "score": "frequency"})
    detail, counts = outcome.controller.ledger.detail, outcome.counts(5)
    assert len({round(detail[layer], 2) for layer in (1, 2, 3)}) > 1
    ordered = sorted((1, 2, 3), key=lambda layer: detail[layer])
    assert counts[ordered[0]] > counts[ordered[2]]


def test_nothing_is_pruned_where_fewer_scales_already_meet_the_budget():
    outcome = traced("infinity")({**WIDE_OPEN, "budget": 1.2, "scale_exit": -1})
    assert reached(outcome) > 1.5
    assert all(run.kept == run.tokens for run in outcome.controller.ledger.runs)


def test_what_cannot_be_reached_is_refused_with_what_can():
    options = {**OPEN, "budget": "50x"}
    with pytest.raises(
        OptionError, match=r"budget='50x': at most [\d.]+x is reachable with min_scale=-3"
    ) as info:
        traced("infinity")(options)
    nearest = str(info.value).rpartition("'")[0].rpartition("'")[2]
    assert float(nearest[:-1]) <= reached(traced("infinity")({**options, "budget": nearest}))
    beyond = f"{float(nearest[:-1]) + 0.02:.2f}x"
    with pytest.raises(OptionError, match=f"at most {nearest}"):
        traced("infinity")({**options, "budget": beyond})


@pytest.mark.parametrize(
    ("value", "factor"), [("2.5x", 2.5), (" 3x ", 3.0), ("1.25", 1.25), (4, 4.0), (2.5, 2.5), (None, None)]
)
def test_the_option_takes_a_factor(value, factor):
    options = Options(budget=value)
    assert options.budget == factor
    assert Options.parse(options.as_dict()) == options


@pytest.mark.parametrize("value", ["fast", "1x", 1, 0.5, -2.0, True, "x", float("inf"), "nan", [2]])
def test_the_option_refuses_everything_else(value):
    with pytest.raises(OptionError, match=r"budget=.*expected a factor above 1 like '2.5x' or 2.5 or None"):
        Options(budget=value)


def test_a_budget_counts_on_no_less_than_two_tokens():
    """No layer computes fewer, so the FLOPs of one could not be had."""
    ask = SimpleNamespace(
        options=Options(budget="2x", min_keep=0.01),
        schedule=SQUARE,
        scale=2,
        exit=len(SQUARE),
        may_prune=lambda scale, layer: True,
        retention=lambda scale, layer: 1.0,
    )
    budget = StepBudget(SimpleNamespace(layers=[0]), sympy.Integer(2), sympy.Symbol("L"))
    assert [place.least for place in budget._places(ask)] == [2] * 4


def test_no_keep_ratios_besides_a_budget():
    with pytest.raises(OptionError, match="budget='2x': expected no keep ratios"):
        Options(budget="2x", keep={-1: 0.5})


PLACES = st.lists(
    st.tuples(st.integers(4, 80), st.floats(0.05, 1), st.integers(2, 4)), min_size=1, max_size=6
).map(lambda rows: [Place(0, layer, *row) for layer, row in enumerate(rows)])


@given(PLACES, st.floats(0, 1.1), st.sampled_from([0.0, 0.3]))
@settings(max_examples=60)
def test_solved_counts_use_the_limit_in_proportion(places, share, skip_below):
    def total(counts):
        return 7 + sum(count * count + 3 * count for count in counts.values())

    whole = total({(0, place.layer): place.tokens for place in places})
    limit = int(share * whole)
    try:
        counts = solve_counts(places, total, limit, skip_below)
    except Unreachable as least:
        assert least.least > limit
        assert all(
            count == (0 if skip_below else place.least)
            for place, count in zip(places, least.counts.values(), strict=True)
        )
        return
    assert total(counts) <= limit
    for place in places:
        count = counts[0, place.layer]
        assert count == 0 if skip_below and count < place.least else place.least <= count <= place.tokens
    if limit >= whole:
        assert total(counts) == whole
    for one in places:
        for other in places:
            # Equal floors and sizes: the heavier place keeps as much or more, up to the token of the rest.
            if (one.tokens, one.least) == (other.tokens, other.least) and one.weight >= other.weight:
                assert counts[0, one.layer] >= counts[0, other.layer] - 1


ALL_SCALES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(4, 80), st.floats(0.05, 1)), min_size=1, max_size=8
).map(lambda rows: [Place(scale, layer, n, weight, 2) for layer, (scale, n, weight) in enumerate(rows)])


@given(ALL_SCALES, st.floats(0, 1.1))
@settings(max_examples=60)
def test_the_last_scales_are_cut_first(places, share):
    def total(counts):
        return 7 + sum(count * count + 3 * count for count in counts.values())

    limit = int(share * total({(place.scale, place.layer): place.tokens for place in places}))
    try:
        counts = solve_counts(places, total, limit, last_first=True)
    except Unreachable as least:
        assert least.least > limit
        return
    assert total(counts) <= limit
    cut = {place.scale for place in places if counts[place.scale, place.layer] < place.tokens}
    for place in places:
        if cut and place.scale > min(cut):
            # One token may have been added from what rounding left over.
            assert counts[place.scale, place.layer] <= max(place.least, 2) + 1
        elif cut and place.scale < min(cut):
            assert counts[place.scale, place.layer] == place.tokens


def test_a_budget_spares_earlier_scales():
    given = {**WIDE_OPEN, "entropy_source": "previous_scale", "protected_layers_first": 0}
    late, even = (
        traced("infinity")({**given, "budget": 1.5, "budget_order": order})
        for order in ("last_scales", "even")
    )
    assert min(reached(late), reached(even)) >= 1.5
    assert sum(late.counts(5)) < sum(even.counts(5))
    assert sum(late.counts(3)) > sum(even.counts(3))


@pytest.mark.slow
@pytest.mark.nightly
def test_the_demo_models_shape():
    """14 layers and 10 scales: the counter's own figures for a dense and a pruned generation."""
    schedule = Schedule.named("scenes")
    subject = TinyInfinity(depth=1)
    torch.manual_seed(0)
    subject.model = Infinity(CONFIGS["scenes"]).eval()
    subject.width, subject.layers = 256, 14
    with flop_counter() as text:
        subject.state(1, schedule)
    with flop_counter() as counter:
        generate(subject, subject.model, schedule=schedule)
    dense = counter.get_total_flops() - text.get_total_flops()
    model = Traced(subject)
    for target in (1.5, 2.0, 3.0):
        options = {"min_scale": -4, "min_keep": 0.02, "prune_layers": False, "score": "frequency"}
        report = report_of(model({**options, "budget": target}, schedule=schedule).run)
        assert report.flops_dense == dense
        assert target <= dense / report.flops <= 1.005 * target
