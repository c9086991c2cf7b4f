"""Generations that replay recorded scale steps, on a CPU with a recorder of our own."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.analysis.reasons import Reason

from .models.fixtures import traced
from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, State, TinyInfinity, generate, identical
from .replayed_steps import DECIDED, LOSSLESS, Kept, compiled


def test_an_online_generation_replays_and_measures_its_scope_by_a_recording(recorder):
    """Depth, scope and counts are found in every image anew; the scales before them are planned once."""
    subject, options = Kept(), {**OPEN, "entropy_source": "previous_scale", "min_scale": 2, "tau": 0.5}
    depths = set()
    with MANY_GRAPHS:
        plain, forward = compiled(subject, options), compiled(subject, {**options, "unit": "step"})
        for seed in (1, 12, 7, 1, 7, 12):  # of three depths, whatever the version of torch
            expected, found = (generate(subject, call, seed=seed) for call in (plain, forward))
            assert identical(found.logits, expected.logits), seed
            ours, theirs = found.controller.ledger, expected.controller.ledger
            assert ours.detail == theirs.detail and len(ours.detail) == subject.layers
            assert (ours.rho, ours.depth) == (theirs.rho, theirs.depth)
            depths.add(ours.depth)
    assert len(depths) == 3


def test_a_model_of_another_type_is_one_of_its_own():
    """So is one on a device."""
    subject = Kept(device="cpu", dtype=torch.float64)
    assert subject.parameter.dtype is torch.float64
    assert Kept().model is traced("infinity").subject.model is not subject.model
    states = [subject.state(1, SQUARE) for _ in range(2)]
    assert states[0].cache is states[1].cache


@pytest.mark.parametrize("options", [LOSSLESS, DECIDED], ids=["lossless", "pruned"])
def test_replays_are_the_calls(recorder, options):
    subject = Kept()
    with MANY_GRAPHS:
        plain = compiled(subject, {**options, "unit": "block"})
        forward = compiled(subject, options)
        first = generate(subject, forward)
        assert recorder.records == len(SQUARE)
        for images, seed in ((1, 1), (1, 2), (2, 1), (1, 3)):
            expected = generate(subject, plain, images, seed=seed)
            found = generate(subject, forward, images, seed=seed)
            assert identical(found.logits, expected.logits), (images, seed)
            assert not found.controller.ledger.notes
        # What was returned before stays as it was.
        assert identical(first.logits, generate(subject, plain).logits)
    # One recording per scale and batch size; Dynamo may run the first batch in its graph of any batch later.
    assert recorder.records in (2 * len(SQUARE), 3 * len(SQUARE))
    assert recorder.replays == 5 * len(SQUARE)


def test_another_text_and_its_length(recorder):
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, LOSSLESS), compiled(subject, {**LOSSLESS, "unit": "block"})
        generate(subject, forward)
        for tokens in (8, 6):
            text = torch.randn(2, tokens, subject.model.config.text_channels)
            lengths = torch.tensor([tokens, tokens - 2])

            def state(images, schedule, text=text, lengths=lengths):
                return State(
                    Kept.state(subject, images, schedule).cache, subject.model.prepare_text(text, lengths)
                )

            subject.state = state
            assert identical(generate(subject, forward).logits, generate(subject, plain).logits)


def test_an_interrupted_generation_leaves_nothing(recorder):
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, DECIDED), compiled(subject, {**DECIDED, "unit": "block"})
        generate(subject, forward)
        with pytest.raises(KeyboardInterrupt):
            generate(subject, forward, seed=5, fail_at=4)
        assert identical(generate(subject, forward, seed=2).logits, generate(subject, plain, seed=2).logits)


def test_caches_that_move_are_recorded_again_and_then_no_more(recorder):
    subject = traced("infinity").subject
    with MANY_GRAPHS:
        forward, plain = compiled(subject, LOSSLESS), compiled(subject, {**LOSSLESS, "unit": "block"})
        expected = generate(subject, plain)
        alive = []
        for _ in range(6):
            alive.append(generate(subject, forward))
            assert identical(alive[-1].logits, expected.logits)
    assert recorder.records == 4 * len(SQUARE)
    notes = alive[-1].controller.ledger.notes
    assert {why.reason for whys in notes.values() for why in whys} == {Reason.NOT_CAPTURED}
    assert sorted(notes) == list(range(len(SQUARE)))


def test_what_cannot_be_recorded_runs_and_says_why(recorder):
    recorder.fails = "operation not permitted when stream is capturing"
    subject = Kept()
    with MANY_GRAPHS:
        found = generate(subject, compiled(subject, DECIDED))
        expected = generate(subject, compiled(subject, {**DECIDED, "unit": "block"}))
    assert identical(found.logits, expected.logits)
    whys = {why for notes in found.controller.ledger.notes.values() for why in notes}
    assert {(why.reason, why.detail) for why in whys} == {(Reason.NOT_CAPTURED, recorder.fails)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_graphs_that_are_required_need_cuda():
    if torch.cuda.is_available():
        pytest.skip("the device is there")
    torch.compiler.reset()
    subject = TinyInfinity()
    with pytest.raises(Exception, match="cuda_graphs=True: expected a CUDA device, not cpu"):
        generate(subject, compiled(subject, LOSSLESS, cuda_graphs=True))
