"""Writes in place: those that a block may do stay and are right, all others leave it dense."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.runtime.generation import generation
from toprovar_fx.schedules import Schedule

from .grammar.judge import all_tokens_in_random_order
from .models import odd_writes
from .models.odd import OddSubject, Plain
from .models.subjects import SQUARE, Outcome, generate, identical, worst
from .models.traced import under

pytestmark = [
    pytest.mark.usefixtures("many_graphs"),
    pytest.mark.filterwarnings(
        "ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning"
    ),
]

# No permutation check: the analysis has to be right by itself.
PRUNING = {
    "lowering": "eager",
    "keep": {4: 0.5, 5: 0.5},
    "score": "random",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
    "restore": "residual",
    "verify": "never",
}
# As many tokens as channels at the last scale.
WIDE = Schedule(((1, 1), (2, 2), (4, 4)))


class WritingSubject(OddSubject):
    """Buffers begin every generation alike."""

    def __init__(self, kind: type[Plain]) -> None:
        super().__init__(kind)
        self.buffers = {name: value.clone() for name, value in self.model.named_buffers()}

    def state(self, images, schedule):
        for name, value in self.model.named_buffers():
            value.copy_(self.buffers[name])
        state = super().state(images, schedule)
        if isinstance(self.model, odd_writes.KeysAndValues):
            state.cache.keys = [torch.cat((keys, keys), -1) for keys in state.keys]
        return state

    def arguments(self, hidden, state, end):
        given = super().arguments(hidden, state, end)
        text = torch.ones(2, 4, self.width).cumsum(1)
        return (*given, text) if isinstance(self.model, odd_writes.RefinedText) else given


def run(subject: OddSubject, schedule: Schedule = SQUARE, dynamic: bool | None = None, **options) -> Outcome:
    return generate(subject, under(subject, {**PRUNING, **options}, dynamic=dynamic), schedule=schedule)


def reasons(outcome: Outcome) -> set[Reason]:
    return {fallback.reason for fallback in outcome.controller.ledger.fallbacks}


def all_right(kind: type[Plain], **how) -> None:
    """All tokens in their order, and in any order, give the model's own result."""
    subject = WritingSubject(kind)
    dense = generate(subject, subject.model, schedule=how.get("schedule", SQUARE))
    kept = run(subject, keep={-1: 1.0}, **how)
    assert identical(kept.logits, dense.logits)
    assert not reasons(kept)
    for pruned_kv in ("drop", "keep"):
        with all_tokens_in_random_order():
            found = run(subject, keep={-2: 0.5, -1: 0.5}, pruned_kv=pruned_kv, **how)
        assert set(found.arms(len(dense.logits) - 1)) == {"pruned"}
        assert worst(found.logits, dense.logits) < 2e-5


@pytest.mark.parametrize("kind", [odd_writes.Statement, odd_writes.KeysAndValues, odd_writes.LikeAnother])
def test_understood(kind):
    all_right(kind)


def test_the_type_of_another_value_with_constant_sizes():
    all_right(odd_writes.LikeAnother, schedule=WIDE, dynamic=False)


REFUSED = [
    (odd_writes.ThroughCast, Reason.IN_PLACE_WRITE),
    (odd_writes.ThroughHeads, Reason.IN_PLACE_WRITE),
    (odd_writes.ChangedTable, Reason.IN_PLACE_WRITE),
    (odd_writes.BehindAttention, Reason.IN_PLACE_WRITE),
    (odd_writes.Counter, Reason.IN_PLACE_WRITE),
    (odd_writes.Copied, Reason.IN_PLACE_WRITE),
    (odd_writes.Remembered, Reason.CACHE_LAYOUT),
    (odd_writes.Backends, Reason.NO_BLOCK),
    (odd_writes.MovedIndex, Reason.CACHE_LAYOUT),
    (odd_writes.ForeignName, Reason.UNKNOWN_OPERATOR),
]


@pytest.mark.parametrize(("kind", "reason"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_refused(kind, reason):
    subject = WritingSubject(kind)
    dense = generate(subject, subject.model)
    memory = subject.model.memory.clone()
    found = run(subject, keep={4: {0: 0.5}, 5: {0: 0.5}})
    assert identical(found.logits, dense.logits)
    assert torch.equal(subject.model.memory, memory)
    assert reasons(found) == {reason}


@pytest.mark.parametrize("kind", [odd_writes.OwnScale, odd_writes.BehindText])
def test_scratch_memory_lacks_nothing_at_the_next_scale(kind):
    """Rows that a scale left out are no rows of the next scale's."""
    subject = WritingSubject(kind)
    both, last = run(subject), run(subject, keep={5: 0.5})
    assert set(both.arms(4)) == set(both.arms(5)) == {"pruned"}
    assert torch.equal(both.logits[5], last.logits[5])
    whole = run(subject, unit="step")
    assert identical(whole.logits, both.logits)


@pytest.mark.parametrize("dynamic", [None, True])
def test_attention_over_a_text_comes_first(dynamic):
    """Text tokens are never taken for the image's: with a symbol for both counts nothing tells them apart."""
    subject = WritingSubject(odd_writes.RefinedText)
    dense = generate(subject, subject.model)
    with all_tokens_in_random_order():
        found = run(subject, dynamic=dynamic)
    assert worst(found.logits, dense.logits) < 2e-5
    assert ("pruned" in found.arms(5)) == (dynamic is None)
    assert dynamic is None or Reason.AMBIGUOUS_LENGTH in reasons(found)


@pytest.mark.parametrize("shared", [True, False])
def test_a_second_call_at_a_scale_is_dense(shared):
    """Guidance by two calls, on parts of one cache: rows that the first left out are none of the second's."""
    subject = OddSubject(Plain)
    step = torch.compile(subject.model, backend="toprovar", options={**PRUNING, "keep": {4: 0.5}})
    with torch.inference_mode(), generation(SQUARE, 1) as opened:
        state, whole = subject.state(1, SQUARE), subject.state(1, SQUARE)
        states = state, state if shared else subject.state(1, SQUARE)
        for scale, end in enumerate(SQUARE.ends[:5]):
            opened.begin_scale(scale)
            hidden = subject.hidden(1, scale, SQUARE)
            expected = subject.model(hidden, whole.keys, whole.values, end)
            for rows, own in zip((slice(0, 1), slice(1, 2)), states, strict=True):
                caches = [[cache[rows] for cache in each] for each in (own.keys, own.values)]
                found = step(hidden[rows], *caches, end)
                if scale < 4 or rows.start:
                    assert worst([found], [expected[rows]]) < 2e-5
    (controller,) = opened.controllers
    assert {fallback.reason for fallback in controller.ledger.fallbacks} == {Reason.SECOND_CALL}
    assert any(run.arm == "pruned" for run in controller.ledger.runs)


def test_a_scale_that_begins_again_runs_again():
    subject = OddSubject(Plain)
    step = torch.compile(subject.model, backend="toprovar", options=PRUNING)
    with torch.inference_mode(), generation(SQUARE, 1) as opened:
        state = subject.state(1, SQUARE)
        found = []
        for scale in (0, 1, 1, 2):
            opened.begin_scale(scale)
            hidden = subject.hidden(1, scale, SQUARE)
            found.append(step(hidden, state.keys, state.values, SQUARE.ends[scale]))
    assert torch.equal(found[1], found[2])
