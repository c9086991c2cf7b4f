"""Token counts that are constants (`torch.compile(dynamic=False)`): every scale is a graph of its own.

The token axis is followed from the input through every operator, so that a number which happens to be L is
not taken for it. The proofs are those of symbolic counts; besides, both must agree bit for bit.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toprovar_fx.cost.expressions import Cost
from toprovar_fx.cost.other_scales import AtOtherScales
from toprovar_fx.input_specs import KEPT, OFFSET, TOKENS
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.report import report_of

from .constant_counts import STATIC, pruned_at
from .models import families as parts
from .models import family_caches as caches
from .models.families import Family
from .models.family_combinations import COMBINATIONS, EVERY_LAYER, label
from .models.fixtures import NAMES, eager, traced
from .models.subjects import BUILDERS, OPEN, SQUARE, generate, identical, worst
from .models.traced import Traced
from .oracles import replay

KEEP = {"keep": {-2: 0.5, -1: {1: 0.25, 2: 0.5, 3: 0.0}}, "entropy_source": "previous_scale"}
OFTEN = ("infinity", "prenorm-separate-absolute")
EVERY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly], id=name) for name in NAMES]


@cache
def static(name: str) -> Traced:
    """A model whose scales are traced one by one; for two images, so for one batch alone."""
    return Traced(BUILDERS[name](), dynamo=STATIC)


@pytest.mark.parametrize("name", EVERY)
def test_keeping_everything_is_the_untouched_model(name):
    found = static(name)({"preset": "lossless", "strict": True}, images=2)
    assert identical(found.logits, eager(name, images=2).logits)
    assert len(static(name).graphs) == len(SQUARE)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("pruned_kv", ["drop", pytest.param("keep", marks=pytest.mark.nightly)])
def test_a_pruned_generation_is_the_oracles(name, pruned_kv):
    """The last scale has as many tokens as the models have channels, the second as many as batch rows."""
    given = {**OPEN, **KEEP, "pruned_kv": pruned_kv, "strict": True, "verify": "always"}
    found = static(name)(given, images=2)
    assert found.arms(5)[1:] == ["pruned", "pruned", "skipped"]
    where = "query" if pruned_kv == "keep" else "input"
    trace = replay(static(name).subject, found.keeps, images=2, where=where)
    assert worst(found.logits, trace.logits) < 2e-5
    deviations = found.controller.ledger.deviations
    assert len(deviations) == 5
    assert max(deviations.values()) < 1e-5


ALIKE = {
    "budget": (
        {
            "budget": "2x",
            "min_scale": 2,
            "min_keep": 0.02,
            "protected_layers_first": 0,
            "entropy_source": "previous_scale",
        },
        True,
    ),
    "exit": ({"preset": "fast"}, True),
    "same layer": ({"keep": {4: 0.5, 5: 0.25}, "entropy_source": "same_layer"}, False),
    "step": ({**KEEP, "unit": "step"}, False),
    "fused step": ({**KEEP, "unit": "step", "step_code": "fused"}, False),
    "branches": ({**KEEP, "gate": "graph"}, False),
    "cache policy": ({**KEEP, "cache_policy": "scalekv"}, False),
    "sublayers": (
        {"policy": "fastvar", "keep": {4: 0.5, 5: 0.5}, "score": "frequency", "scale_exit": None},
        False,
    ),
    "online": ({"preset": "balanced"}, False),
    "budget, all keys": ({"budget": 1.2, "min_scale": 2, "min_keep": 0.02, "pruned_kv": "keep"}, False),
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=[] if often else [pytest.mark.nightly], id=name)
        for name, (options, often) in ALIKE.items()
    ],
)
def test_constant_and_symbolic_counts_agree(options):
    """Logits, kept tokens and prices, those of scales that did not run included."""
    models = static("infinity"), traced("infinity")
    found, expected = (model({**OPEN, **options}, images=2) for model in models)
    assert any(pruned_at(found, scale) for scale in (4, 5))
    assert identical(found.logits, expected.logits)
    assert found.keeps.keys() == expected.keeps.keys()
    left, right = report_of(found.run), report_of(expected.run)
    assert (left.flops, left.flops_dense) == (right.flops, right.flops_dense)
    assert left.fallbacks == right.fallbacks == []


def test_a_price_before_anything_runs():
    """A law, told from the graph of any one scale, against the expressions of the symbolic graph."""
    prices = []
    for model in (static("infinity"), traced("infinity")):
        model({"preset": "criterion", "seed": 31}, images=2)
        found = [program for program in model.programs.values() if isinstance(program, StepProgram)]
        assert found
        prices.append(
            [p for program in found if program.options.seed == 31 for p in [program.price(SQUARE, rows=4)]]
        )
    (symbolic,) = prices[1]
    assert len(prices[0]) == len(SQUARE) - 1
    for price in prices[0]:
        # Scale 0 is that of a cache without rows; a law does not see what is special there.
        for mine, its in zip(price.dense[1:], symbolic.dense[1:], strict=True):
            assert mine.flops == pytest.approx(its.flops, rel=0.02)


OFTEN_COMBINED = (caches.JoinedTokensFirst, caches.IndexCopied)


@cache
def static_family(at: int) -> Traced:
    layer, position, kind = COMBINATIONS[at]
    return Traced(Family(layer, position(), kind()), dynamo=STATIC)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(at, marks=[] if each[2] in OFTEN_COMBINED else [pytest.mark.nightly], id=label(each))
        for at, each in enumerate(COMBINATIONS)
    ],
)
def test_families_with_any_cache(at):
    model = static_family(at)
    whole = model({"preset": "lossless", "strict": True})
    assert identical(whole.logits, generate(model.subject, model.subject.model).logits)
    some = model(EVERY_LAYER)
    assert some.arms(4) == ["pruned", "pruned", "skipped"]
    limit = 5e-2 if "HalfPrecision" in model.subject.name else 5e-5
    assert worst(some.logits, parts.plainly(model.subject, some.keeps, SQUARE)) < limit


@pytest.mark.nightly
def test_through_inductor():
    found = static("infinity")({**OPEN, **KEEP, "lowering": "inductor"})
    assert found.arms(5)[1:] == ["pruned", "pruned", "skipped"]
    assert worst(found.logits, replay(static("infinity").subject, found.keeps).logits) < 2e-5


def test_a_budget_with_joined_caches():
    """The graph of a scale has no room for the rows of later ones, whose prices are asked of it."""
    model = static_family(0)
    given = {name: value for name, value in EVERY_LAYER.items() if name != "keep"}
    found = model({**given, "budget": 1.3})
    assert pruned_at(found, 5)
    report = report_of(found.run)
    assert 1.3 <= report.flops_dense / report.flops <= 1.3 * 1.02
    assert worst(found.logits, parts.plainly(model.subject, found.keeps, SQUARE)) < 5e-5


class Polynomial:
    """A graph whose cost follows the law, up to the rows that its cache has room for."""

    def __init__(self, factors: tuple[int, ...], length: int, start: int, of_rows: bool) -> None:
        self.factors, self.length, self.room, self.of_rows = factors, length, start + length, of_rows

    def at(self, length: int, kept: int, offset: int) -> int:
        a, b, c, d = self.factors
        if self.of_rows:
            return b * kept + c * kept * (offset + kept)
        return a * length + b * kept + (c * kept + d * length) * (offset + length)

    def cost(self, sizes):
        given = dict(sizes)
        rows = given[KEPT] if self.of_rows else self.length
        assert given[OFFSET] + rows <= self.room
        return Cost(*(scale * self.at(self.length, given[KEPT], given[OFFSET]) for scale in (1, 2, 3)))


@given(
    st.tuples(*[st.integers(0, 50)] * 4),
    st.tuples(*[st.integers(2, 30)] * 2),
    st.tuples(*[st.integers(2, 40)] * 3),
    st.booleans(),
)
def test_the_law_of_prices(factors, own, asked, of_rows):
    graph = Polynomial(factors, *own, of_rows)
    length, kept, offset = asked
    assume(length != own[0])
    found = AtOtherScales(graph, *own, of_rows).cost(((TOKENS, length), (KEPT, kept), (OFFSET, offset)))
    assert found == Cost(*(scale * graph.at(length, kept, offset) for scale in (1, 2, 3)))
