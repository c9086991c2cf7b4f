"""What must not be pruned stays dense, with a typed reason, and never gives a wrong result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.errors import GraphError
from toprovar_fx.program import DenseProgram, programs
from toprovar_fx.runtime.generation import generation

from .models import odd
from .models.subjects import MANY_GRAPHS, SQUARE, Outcome, generate, identical

PRUNING = {
    "lowering": "eager",
    "keep": {3: 0.5, 4: 0.5, 5: 0.25},
    "score": "random",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
}

CASES = [
    (odd.TokenMean, Reason.TOKEN_MIXING),
    (odd.TokenSoftmax, Reason.TOKEN_MIXING),
    (odd.GlobalNorm, Reason.TOKEN_MIXING),
    (odd.TokenSlice, Reason.TOKEN_MIXING),
    (odd.TokenMixer, Reason.UNKNOWN_OPERATOR),
    (odd.Convolution, Reason.UNKNOWN_OPERATOR),
    (odd.GridConvolution, Reason.UNKNOWN_OPERATOR),
    (odd.Roll, Reason.UNKNOWN_OPERATOR),
    (odd.Cumulative, Reason.UNKNOWN_OPERATOR),
    (odd.Unknown, Reason.UNKNOWN_OPERATOR),
    (odd.ShapeObject, Reason.UNKNOWN_OPERATOR),
    (odd.Merged, Reason.RESHAPED_TOKENS),
    (odd.LengthFactor, Reason.LENGTH_IN_ARITHMETIC),
    (odd.LengthInteger, Reason.LENGTH_IN_ARITHMETIC),
    (odd.LengthInTable, Reason.LENGTH_IN_ARITHMETIC),
    (odd.InPlace, Reason.IN_PLACE_WRITE),
    (odd.InPlaceSum, Reason.IN_PLACE_WRITE),
    (odd.InPlaceView, Reason.IN_PLACE_WRITE),
    (odd.Masked, Reason.MASKED_ATTENTION),
    (odd.Causal, Reason.MASKED_ATTENTION),
    (odd.Handwritten, Reason.NO_ATTENTION),
    (odd.NoAttention, Reason.NO_ATTENTION),
    (odd.TextOnly, Reason.NO_ATTENTION),
    # Neither writes by slice assignment, so the keys do not seem to depend on the tokens.
    (odd.IndexWrite, Reason.NO_ATTENTION),
    (odd.ConstantWrite, Reason.CACHE_WRITE),
    (odd.ShiftedWrite, Reason.CACHE_WRITE),
    (odd.Appended, Reason.TOKEN_MIXING),
    (odd.SecondStream, Reason.NO_BLOCK),
    (odd.TwoAttentions, Reason.NO_BLOCK),
    (odd.NoResidual, Reason.NO_BLOCK),
    (odd.Grid, Reason.NO_TOKEN_AXIS),
]


@pytest.fixture(autouse=True)
def many_graphs() -> Iterator[None]:
    torch.compiler.reset()
    with MANY_GRAPHS:
        yield
    torch.compiler.reset()


def reasons(outcome: Outcome) -> set[Reason]:
    return {fallback.reason for fallback in outcome.controller.ledger.fallbacks}


def compiled(subject: odd.OddSubject, **options: object):
    return torch.compile(subject.model, backend="toprovar", options={**PRUNING, **options})


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(("kind", "reason"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_refused_with_a_reason(kind, reason):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject))
    assert identical(outcome.logits, expected.logits)
    assert identical(outcome.state.keys, expected.state.keys)
    assert reasons(outcome) == {reason}
    assert all(run.arm == "dense" for run in outcome.controller.ledger.runs)
    with pytest.raises(Exception, match=reason.name) as caught:
        generate(subject, compiled(subject, strict=True))
    assert isinstance(cause(caught.value), GraphError)


def cause(error: BaseException) -> BaseException:
    """What a backend raised inside Dynamo."""
    return getattr(error, "inner_exception", error)


@pytest.mark.parametrize(
    ("kind", "others"), [(odd.SharedCache, {Reason.NO_ATTENTION}), (odd.LateRead, set())]
)
def test_a_cache_that_others_read_is_not_shortened(kind, others):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject, keep={3: {0: 0.5}, 5: {0: 0.5}}))
    assert reasons(outcome) == {Reason.SHARED_STATE} | others
    assert identical(outcome.logits, expected.logits)


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
def test_gradients_are_refused():
    subject = odd.OddSubject(odd.Plain)
    forward = compiled(subject)
    hidden = subject.hidden(1, 2, SQUARE).requires_grad_()
    with generation(SQUARE, 1) as run:
        run.begin_scale(2)
        state = subject.state(1, SQUARE)
        forward(*subject.arguments(hidden, state, SQUARE.ends[2])).sum().backward()
        (controller,) = run.controllers
        assert {fallback.reason for fallback in controller.ledger.fallbacks} == {Reason.GRADIENTS}
    assert hidden.grad is not None


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize("kind", [odd.TableInBlock, odd.LengthFactor, odd.TokenMean])
def test_static_shapes_are_refused(kind):
    """With dynamic=False every scale is a graph of its own, in which L is a number like any other."""
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(
        subject, torch.compile(subject.model, backend="toprovar", dynamic=False, options=PRUNING)
    )
    assert identical(outcome.logits, expected.logits)
    assert reasons(outcome) == {Reason.AMBIGUOUS_LENGTH}


def test_a_scale_of_one_token_is_no_reason_to_complain():
    subject = odd.OddSubject(odd.Plain)
    outcome = generate(subject, compiled(subject, strict=True))
    assert not reasons(outcome)
    first = [program for program in programs() if isinstance(program, DenseProgram)]
    assert {fallback.reason for p in first for r in p.records for fallback in r.fallbacks} == {
        Reason.ONE_TOKEN
    }


def test_every_reason_has_a_test():
    here = {reason for _, reason in CASES}
    here |= {
        Reason.SHARED_STATE,
        Reason.GRADIENTS,
        Reason.AMBIGUOUS_LENGTH,
        Reason.ONE_TOKEN,
        Reason.VERIFICATION,
        Reason.NO_SUBLAYERS,
    }
    assert set(Reason) == here


def test_blocks_without_sublayers_are_decided_about_as_a_whole():
    subject = odd.OddSubject(odd.Parallel)
    own = {"policy": "fastvar", "keep": PRUNING["keep"], "score": "frequency", "scale_exit": None}
    outcome = generate(subject, compiled(subject, **own))
    assert reasons(outcome) == {Reason.NO_SUBLAYERS}
    assert outcome.arms(5) == ["pruned", "pruned"]
    whole = {**own, "policy": "toprovar", "preset": "criterion", "cfg_rows": "per_row"}
    assert identical(outcome.logits, generate(subject, compiled(subject, **whole)).logits)
    with pytest.raises(Exception, match="NO_SUBLAYERS") as caught:
        generate(subject, compiled(subject, **own, strict=True))
    assert isinstance(cause(caught.value), GraphError)


@pytest.mark.parametrize("kind", [odd.Plain, odd.TableInBlock])
def test_the_same_model_without_oddity_is_pruned(kind):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject))
    assert not reasons(outcome)
    assert outcome.arms(5) == ["pruned", "pruned"]
    assert not identical(outcome.logits, expected.logits)
