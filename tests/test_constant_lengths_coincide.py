"""Token counts that are constants: other numbers that are equal to them are not taken for them.

Drawn sizes are the token count, a multiple or a part of it; what the number alone cannot tell stays dense.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toprovar_fx.analysis.reasons import Reason

from .constant_counts import STATIC, pruned_at, run_static
from .models import odd, odd_caches, odd_packed
from .models.coincidences import CoincidentSubject, Sizes, plainly
from .models.family_combinations import EVERY_LAYER
from .models.refused import PACKED_ROWS, REASONS
from .models.subjects import MANY_GRAPHS, SQUARE, generate, identical, worst
from .models.traced import Traced


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
REFUSED = [(kind, reason) for kind, reason in REASONS if reason is not Reason.LENGTH_IN_ARITHMETIC]
REFUSED += [(kind, Reason.PACKED_ROWS) for kind in PACKED_ROWS]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(("kind", "reason"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_what_is_refused_with_a_symbol_is_refused_with_a_number(kind, reason):
    subject = odd.OddSubject(kind)
    found = run_static(subject)
    assert {fallback.reason for fallback in found.controller.ledger.fallbacks} == {reason}
    assert identical(found.logits, generate(subject, subject.model).logits)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [odd_packed.Packed, odd_caches.NarrowWrite, odd.TableInBlock])
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
    # At scale 2 it has as many rows as the scale, and is the second step that runs there.
    assert reasons == {Reason.AMBIGUOUS_LENGTH, Reason.SECOND_CALL}
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
