"""What must not be pruned stays dense, with a typed reason, and never gives a wrong result."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.analysis.attention import attention_calls
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.errors import GraphError
from toprovar_fx.live_programs import programs
from toprovar_fx.passes.row_sizes import RowSizes
from toprovar_fx.runtime.generation import generation

from .dynamo_errors import cause
from .models import odd, odd_attention, odd_caches, odd_packed
from .models.refused import REASONS
from .models.subjects import SQUARE, Outcome, generate, identical
from .models.traced import under

pytestmark = pytest.mark.usefixtures("many_graphs")

PRUNING = {
    "lowering": "eager",
    "keep": {3: 0.5, 4: 0.5, 5: 0.25},
    "score": "random",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
}


def reasons(outcome: Outcome) -> set[Reason]:
    return {fallback.reason for fallback in outcome.controller.ledger.fallbacks}


def compiled(subject: odd.OddSubject, **options: object):
    return under(subject, {**PRUNING, **options})


def compiled_at_once(subject: odd.OddSubject, **options: object):
    """Errors come as they come to whoever compiles: through Dynamo."""
    return torch.compile(subject.model, backend="toprovar", options={**PRUNING, **options})


SLOW = [(odd_attention.FlexBlocks, Reason.MASKED_ATTENTION)]
BY_NAME = [pytest.param(*case, id=case[0].__name__) for case in REASONS]
BY_NAME += [pytest.param(*case, id=case[0].__name__, marks=pytest.mark.nightly) for case in SLOW]


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(("kind", "reason"), BY_NAME)
def test_refused_with_a_reason(kind, reason):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject))
    assert identical(outcome.logits, expected.logits)
    assert identical(outcome.state.keys, expected.state.keys)
    assert reasons(outcome) == {reason}
    assert all(run.arm == "dense" for run in outcome.controller.ledger.runs)
    if kind.__module__ in (odd_attention.__name__, odd_packed.__name__):
        for fallback in outcome.controller.ledger.fallbacks:
            assert fallback.node and ".py:" in fallback.source and reason.value in str(fallback)
    with pytest.raises(GraphError, match=reason.name):
        generate(subject, compiled(subject, strict=True))


def test_a_shape_passed_around_is_understood():
    """A `torch.Size` is its numbers and the token count; the permutation check runs on what is pruned."""
    subject = odd.OddSubject(odd.ShapeObject)
    outcome = generate(subject, compiled(subject))
    assert not reasons(outcome)
    assert "pruned" in outcome.arms(len(SQUARE) - 1)
    whole = generate(subject, compiled(subject, keep={-1: 1.0}))
    assert identical(whole.logits, generate(subject, subject.model).logits)


def test_positions_that_the_head_adds_are_no_part_of_the_last_layer():
    subject = odd.OddSubject(odd.TableInHead)
    found = generate(subject, compiled(subject, keep={5: {1: 0.0}}, restore="residual"))
    assert found.arms(5) == ["dense", "skipped"]
    subject.model.skips = SQUARE.tokens[5]
    assert identical(found.logits, generate(subject, subject.model).logits)


@pytest.mark.parametrize(
    ("kind", "others"), [(odd_caches.SharedCache, {Reason.NO_ATTENTION}), (odd_caches.LateRead, set())]
)
def test_a_cache_that_others_read_is_not_shortened(kind, others):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject, keep={3: {0: 0.5}, 5: {0: 0.5}}))
    assert reasons(outcome) == {Reason.SHARED_STATE} | others
    assert identical(outcome.logits, expected.logits)


PER_KEY = [odd_attention.KeyMask, odd_attention.HandwrittenKeyMask, odd_attention.KeyTable]


@pytest.mark.parametrize("kind", PER_KEY)
def test_a_value_per_key_is_no_obstacle_where_all_keys_stay(kind):
    subject = odd.OddSubject(kind)
    outcome = generate(subject, compiled(subject, pruned_kv="keep"))
    assert not reasons(outcome)
    assert outcome.arms(5) == ["pruned", "pruned"]
    assert max(outcome.controller.ledger.deviations.values()) < 1e-5


@pytest.mark.parametrize("kind", PER_KEY)
def test_a_value_per_key_and_skipped_layers(kind):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject, pruned_kv="keep", keep={4: 0.0}))
    assert reasons(outcome) == {Reason.MASKED_ATTENTION}
    assert outcome.arms(4) == ["dense", "dense"]
    assert identical(outcome.logits, expected.logits)


def test_a_layer_that_is_not_understood_does_not_stop_the_others():
    subject = odd.OddSubject(odd_attention.OneLayer)
    outcome = generate(subject, compiled(subject))
    assert reasons(outcome) == {Reason.ATTENTION_VARIANT}
    assert {fallback.layer for fallback in outcome.controller.ledger.fallbacks} == {1}
    assert outcome.arms(5) == ["pruned"]


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
def test_gradients_are_refused():
    subject = odd.OddSubject(odd.Plain)
    forward = compiled_at_once(subject)
    hidden = subject.hidden(1, 2, SQUARE).requires_grad_()
    with generation(SQUARE, 1) as run:
        run.begin_scale(2)
        state = subject.state(1, SQUARE)
        forward(*subject.arguments(hidden, state, SQUARE.ends[2])).sum().backward()
        (controller,) = run.controllers
        assert {fallback.reason for fallback in controller.ledger.fallbacks} == {Reason.GRADIENTS}
    assert hidden.grad is not None


def test_a_scale_of_one_token_is_no_reason_to_complain():
    subject, others = odd.OddSubject(odd.Plain), programs()
    outcome = generate(subject, compiled(subject, strict=True))
    assert not reasons(outcome)
    made = [program for program in programs() if program not in others]
    first = [program for program in made if isinstance(program, DenseProgram)]
    assert first
    assert {fallback.reason for p in first for r in p.records for fallback in r.fallbacks} == {
        Reason.ONE_TOKEN
    }


def test_a_block_that_changes_the_type_of_the_stream_stays_dense():
    subject = odd.OddSubject(odd.Widened)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject, keep={3: {0: 0.5}, 5: {0: 0.5}}))
    assert reasons(outcome) == {Reason.RESIDUAL_DTYPE}
    assert {fallback.layer for fallback in outcome.controller.ledger.fallbacks} == {0}
    assert identical(outcome.logits, expected.logits)
    assert "pruned" in generate(subject, compiled(subject)).arms(5), "the second layer keeps its type"


@pytest.mark.parametrize("settings", [{}, {"score": "entropy"}], ids=["gather", "tap and gather"])
def test_a_rewrite_whose_shapes_do_not_come_out_right_runs_dense(settings, monkeypatch):
    """A rewriter that forgets the token count among an operator's arguments."""
    monkeypatch.setattr(RowSizes, "_kept_sizes", lambda self, before, after: after)
    subject = odd.OddSubject(odd.Plain)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject, **settings))
    assert identical(outcome.logits, expected.logits)
    assert reasons(outcome) == {Reason.SHAPE_PROOF}
    assert {fallback.layer for fallback in outcome.controller.ledger.fallbacks} == {0, 1}
    with pytest.raises(Exception, match=r"SHAPE_PROOF .*K tokens from block_input on"):
        generate(subject, compiled_at_once(subject, strict=True, **settings))


def test_every_reason_has_a_test():
    here = {reason for _, reason in REASONS}
    here |= {
        Reason.SHARED_STATE,
        Reason.GRADIENTS,
        # tests/test_constant_lengths_coincide.py and test_constant_lengths_limit.py
        Reason.AMBIGUOUS_LENGTH,
        Reason.RECOMPILE_LIMIT,
        Reason.SECOND_CALL,  # tests/test_in_place.py
        Reason.ONE_TOKEN,
        Reason.VERIFICATION,
        Reason.GATE_ON_HOST,  # tests/test_graph_gates.py
        # Why a scale ran otherwise than was asked for: tests/test_whole_step.py, tests/test_cuda_graphs.py.
        Reason.UNDECIDED_STEP,
        Reason.NOT_CAPTURED,
        Reason.CHECKED_BY_BLOCK,  # tests/test_partly_understood.py
        Reason.RESIDUAL_DTYPE,
        Reason.SHAPE_PROOF,
        Reason.NO_SUBLAYERS,
        Reason.WHOLE_CACHE,  # tests/test_cache_policies.py
        Reason.FAILED_REWRITE,  # tests/test_on_error.py
        Reason.NOT_COMPILED,
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
        generate(subject, compiled_at_once(subject, **own, strict=True))
    assert isinstance(cause(caught.value), GraphError)


@pytest.mark.parametrize("kind", [odd.Plain, odd.TableInBlock, odd_caches.NarrowWrite])
def test_the_same_model_without_oddity_is_pruned(kind):
    subject = odd.OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, compiled(subject))
    assert not reasons(outcome)
    assert outcome.arms(5) == ["pruned", "pruned"]
    assert not identical(outcome.logits, expected.logits)


def test_a_block_mask_is_refused_wherever_it_was_made():
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm)
        return gm

    subject = odd.OddSubject(odd_attention.FlexBlocks)
    generate(subject, torch.compile(subject.model, backend=keep), schedule=SQUARE.first(3))
    verdicts = [call.verdict for call in attention_calls(graphs[-1].graph)]
    assert verdicts and all(each is not None and each.reason is Reason.MASKED_ATTENTION for each in verdicts)
