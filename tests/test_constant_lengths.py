"""Token counts that are constants (`torch.compile(dynamic=False)`): every scale is a graph of its own.

The token axis is followed from the input through every operator, so that a number which happens to be L is
not taken for it. The proofs are those of symbolic counts; besides, both must agree bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from toprovar_fx import backend as backend_module
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.cost.expressions import Cost
from toprovar_fx.cost.other_scales import AtOtherScales
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.errors import GraphError
from toprovar_fx.explanation.run import explaining
from toprovar_fx.input_specs import KEPT, OFFSET, TOKENS
from toprovar_fx.live_programs import programs
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.report import report_of

from .models import families as parts
from .models import odd, odd_packed
from .models.coincidences import CoincidentSubject, Sizes, plainly
from .models.families import Family
from .models.fixtures import NAMES, eager, traced
from .models.subjects import (
    BUILDERS,
    MANY_GRAPHS,
    OPEN,
    SQUARE,
    Outcome,
    Subject,
    Traced,
    generate,
    identical,
    worst,
)
from .oracles import replay
from .test_analysis_refusals import CASES
from .test_families import COMBINATIONS, label
from .test_families import OPEN as EVERY_LAYER
from .test_packed_rows import WRONG

STATIC = {"dynamic": False}
KEEP = {"keep": {-2: 0.5, -1: {1: 0.25, 2: 0.5, 3: 0.0}}, "entropy_source": "previous_scale"}
OFTEN = ("infinity", "prenorm-separate-absolute")
EVERY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly], id=name) for name in NAMES]


@cache
def static(name: str) -> Traced:
    """A model whose scales are traced one by one."""
    return Traced(BUILDERS[name](), dynamo=STATIC)


def pruned_at(outcome: Outcome, scale: int) -> bool:
    return {run.arm for run in outcome.controller.ledger.runs if run.scale == scale} >= {"pruned"}


@pytest.mark.parametrize("name", EVERY)
def test_keeping_everything_is_the_untouched_model(name):
    found = static(name)({"preset": "lossless", "strict": True})
    assert identical(found.logits, eager(name).logits)
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
    found, expected = (model({**OPEN, **options}) for model in (static("infinity"), traced("infinity")))
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
        model({"preset": "criterion", "seed": 31})
        found = [program for program in model.programs.values() if isinstance(program, StepProgram)]
        assert found
        prices.append([p for program in found if program.options.seed == 31 for p in [program.price(SQUARE)]])
    (symbolic,) = prices[1]
    assert len(prices[0]) == len(SQUARE) - 1
    for price in prices[0]:
        # Scale 0 is that of a cache without rows; a law does not see what is special there.
        for mine, its in zip(price.dense[1:], symbolic.dense[1:], strict=True):
            assert mine.flops == pytest.approx(its.flops, rel=0.02)


OFTEN_COMBINED = (parts.JoinedTokensFirst, parts.IndexCopied)


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


# Numbers that are equal to the token count.


@st.composite
def coincidences(draw: st.DrawFn) -> Sizes:
    """Sizes that are L, a multiple of it or a part of it more often than not."""
    tokens = draw(st.sampled_from((2, 3, 4, 6)))
    equal = st.sampled_from((tokens, tokens, 2 * tokens, 2, 3))
    return Sizes(
        tokens=tokens,
        before=draw(st.sampled_from((1, tokens) if tokens > 2 else (1,))),
        heads=draw(st.sampled_from((tokens, 2 * tokens, 1, 2))),
        head=draw(equal),
        images=draw(st.sampled_from((1, max(1, tokens // 2), tokens))),
        vectors=draw(equal),
        text=draw(equal),
        cache=draw(st.sampled_from(("slice", "cat", "none"))),
        slots=draw(st.sampled_from((0, tokens, 1))),
        merged=draw(st.booleans()),
    )


def judge(sizes: Sizes) -> None:
    """Refused with a reason, and then the dense result; or right in every proof."""
    torch.compiler.reset()
    subject = CoincidentSubject(sizes)
    model = Traced(subject, dynamo=STATIC)
    given = {"images": sizes.images, "schedule": sizes.schedule}
    dense = generate(subject, subject.model, **given)
    assert identical(model({"preset": "lossless"}, **given).logits, dense.logits)
    options = {**EVERY_LAYER, "keep": {-2: 0.5, -1: {0: 0.34, 1: 0.7}}, "strict": False}
    found = model(options, **given)
    reasons = {fallback.reason for fallback in found.controller.ledger.fallbacks}
    assert reasons <= {Reason.AMBIGUOUS_LENGTH}
    assert worst(found.logits, plainly(subject, found.keeps)) < 5e-5
    deviations = found.controller.ledger.deviations
    assert max(deviations.values(), default=0.0) < 1e-5
    assert reasons or pruned_at(found, len(sizes.schedule) - 1)


@settings(max_examples=6)
@given(coincidences())
def test_a_number_that_happens_to_be_the_token_count_is_not_taken_for_it(sizes):
    judge(sizes)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@settings(max_examples=150)
@given(coincidences())
def test_many_numbers_that_happen_to_be_the_token_count(sizes):
    judge(sizes)


def test_everything_is_the_token_count():
    judge(Sizes(4, before=4, heads=4, head=4, images=2, vectors=4, text=4, cache="cat", merged=True))


class Conditioned(odd.Plain):
    """A second input with as many rows as there are tokens, added to the first."""

    def forward(self, hidden: Tensor, condition: Tensor, keys: list[Tensor], values: list[Tensor], end: int):
        return super().forward(hidden + condition, keys, values, end)


class ConditionedSubject(odd.OddSubject):
    def arguments(self, hidden, state, end):
        return hidden.clone(), hidden.sin(), state.keys, state.values, end


class WithText(odd.Plain):
    """Attends over the rows of a text as well."""

    def forward(self, hidden: Tensor, text: Tensor, keys: list[Tensor], values: list[Tensor], end: int):
        text = text + torch.nn.functional.scaled_dot_product_attention(text, text, text)
        return super().forward(hidden + text.mean(1, keepdim=True), keys, values, end)


class WithTextSubject(odd.OddSubject):
    def arguments(self, hidden, state, end):
        return hidden.clone(), torch.linspace(-1, 1, 9 * 2 * 16).view(2, 9, 16), state.keys, state.values, end


class FromTheEnd(odd.Plain):
    """Not odd to torch: rows of the cache that are counted from its end."""

    def attend(self, q, k, v, keys, values, end):
        slots = keys.shape[2]
        keys[:, :, end - q.shape[2] - slots : end - slots] = k
        values[:, :, end - q.shape[2] - slots : end - slots] = v
        return torch.nn.functional.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


def run_static(
    subject: Subject,
    limit: int = 256,
    dynamic: bool | None = False,
    compiling: Mapping[str, Any] | None = None,
    **options: object,
) -> Outcome:
    torch.compiler.reset()
    given = {"lowering": "eager", "score": "random", "protected_layers_first": 0, "protected_layers_last": 0}
    given |= {"keep": {3: 0.5, 4: 0.5, 5: 0.25}, **options}
    more = {"dynamic": dynamic, **(compiling or {})}
    forward = torch.compile(subject.model, backend="toprovar", options=given, **more)
    with MANY_GRAPHS, torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=False):
        return generate(subject, forward)


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (lambda: ConditionedSubject(Conditioned), Reason.AMBIGUOUS_LENGTH),
        (lambda: WithTextSubject(WithText), Reason.AMBIGUOUS_LENGTH),
        (lambda: odd.OddSubject(FromTheEnd), Reason.CACHE_LAYOUT),
        (lambda: odd.OddSubject(odd.TokenMean), Reason.TOKEN_MIXING),
    ],
    ids=["two inputs of tokens", "a text's tokens too", "counted from the end", "mean over the tokens"],
)
def test_what_cannot_be_told_stays_dense(subject, reason):
    subject = subject()
    found = run_static(subject)
    assert {fallback.reason for fallback in found.controller.ledger.fallbacks} == {reason}
    assert identical(found.logits, generate(subject, subject.model).logits)


# A number made of the token count is a number: see the factor below.
REFUSED = [(kind, reason) for kind, reason in CASES if reason is not Reason.LENGTH_IN_ARITHMETIC]
REFUSED += [(kind, Reason.PACKED_ROWS) for kind in WRONG]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(("kind", "reason"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_what_is_refused_with_a_symbol_is_refused_with_a_number(kind, reason):
    subject = odd.OddSubject(kind)
    found = run_static(subject)
    assert {fallback.reason for fallback in found.controller.ledger.fallbacks} == {reason}
    assert identical(found.logits, generate(subject, subject.model).logits)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [odd_packed.Packed, odd.NarrowWrite, odd.TableInBlock])
def test_what_is_pruned_with_a_symbol_is_pruned_with_a_number(kind):
    subject = odd.OddSubject(kind)
    found, expected = run_static(subject, strict=True), run_static(subject, dynamic=None, strict=True)
    assert found.arms(5) == ["pruned", "pruned"]
    assert identical(found.logits, expected.logits)


def test_the_rows_of_another_model_are_not_the_tokens_of_the_scale(fresh_dynamo):
    """A decoder that runs between two scales, on as many rows at each of them."""
    step, decoder = odd.OddSubject(odd.Plain), odd.OddSubject(odd.Plain)
    options = {"lowering": "eager", "score": "random", "keep": {4: 0.5, 5: 0.5}, "protected_layers_first": 0}
    options |= {"protected_layers_last": 0}

    def forward(*given: Any) -> Tensor:
        with MANY_GRAPHS:
            logits = torch.compile(step.model, backend="toprovar", options=options, dynamic=False)(*given)
            rows, state = decoder.hidden(1, 2, SQUARE), decoder.state(1, SQUARE)
            given = decoder.arguments(rows, state, 9)
            made = torch.compile(decoder.model, backend="toprovar", options=options, dynamic=False)(*given)
        expected.append((made, decoder.model(*decoder.arguments(rows, decoder.state(1, SQUARE), 9))))
        return logits

    expected: list[tuple[Tensor, Tensor]] = []
    found = generate(step, forward)
    reasons = {fallback.reason for fallback in found.controller.ledger.fallbacks}
    assert reasons == {Reason.AMBIGUOUS_LENGTH}
    assert pruned_at(found, 5)
    assert all(torch.equal(*pair) for pair in expected)


def test_a_table_that_is_cut_inside_a_block():
    """Its first and last row are numbers, and stay: rows are chosen among those of the scale."""
    subject = odd.OddSubject(odd.TableInBlock)
    found, expected = run_static(subject, strict=True), run_static(subject, dynamic=None, strict=True)
    assert found.arms(5) == ["pruned", "pruned"]
    assert identical(found.logits, expected.logits)


def test_a_factor_made_of_the_token_count_stays_that_of_all_tokens():
    """Dynamo leaves a number, and each kept token is what the dense step makes of it."""
    subject = odd.OddSubject(odd.LengthFactor)
    found = run_static(subject, keep={5: 0.5}, verify="always", restore="residual")
    assert found.arms(5) == ["pruned", "pruned"]
    assert max(found.controller.ledger.deviations.values()) < 1e-5
    keys = generate(subject, subject.model).state.keys[0]
    kept, start = found.keeps[5, 0], SQUARE.ends[4]
    for row, positions in enumerate(kept):
        mine = found.state.keys[0][row, :, start : start + len(positions)]
        assert worst([mine], [keys[row, :, start + positions]]) < 1e-6


# Dynamo's limit.


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:toprovar. scales .* ran outside the compiled graphs:RuntimeWarning")
def test_nothing_is_pruned_where_dynamo_will_stop_half_way():
    """Scales that run eagerly would read caches that lack rows."""
    subject = odd.OddSubject(odd.Plain)
    found = run_static(subject, limit=5)
    assert {fallback.reason for fallback in found.controller.ledger.fallbacks} == {Reason.RECOMPILE_LIMIT}
    assert found.run.eager_scales == [5]
    assert identical(found.logits, generate(subject, subject.model).logits)
    assert not run_static(subject, limit=6).controller.ledger.fallbacks


@pytest.mark.skipif(
    "recompile_limit" not in inspect.signature(torch.compile).parameters,
    reason="older torch takes none",
)
def test_the_advice_about_the_limit_helps():
    subject = odd.OddSubject(odd.Plain)
    found = run_static(subject, limit=2, compiling={"recompile_limit": 64})
    assert found.arms(5) == ["pruned", "pruned"]
    assert not found.run.eager_scales


def test_a_scale_that_runs_eagerly_on_short_caches_is_an_error(monkeypatch):
    """Where nobody knew in time: a trace outside of a generation, or a limit that others used up."""
    monkeypatch.setattr(backend_module, "refuse_unfinished", lambda length, options: None)
    with pytest.raises(GraphError, match=r"scale 4 ran outside the compiled graphs.*recompile_limit"):
        run_static(odd.OddSubject(odd.Plain), limit=4)
    with pytest.raises(GraphError, match="scale 5 ran outside"):
        run_static(odd.OddSubject(odd.Plain), limit=5)


def test_the_report_lists_every_graph():
    with explaining() as report:
        run_static(odd.OddSubject(odd.Plain), keep={5: 0.25}, seed=77)
    steps = [program for program in programs() if program.options.seed == 77]
    assert sum(isinstance(program, DenseProgram) for program in steps) == 1
    assert len(report.graphs) == len(SQUARE)
    text = str(report)
    assert "pruned" in text
    assert "5 recompilations" in text
