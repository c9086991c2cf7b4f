"""`toprovar_fx.dense()`: the untouched result from a program that was compiled to prune."""

from __future__ import annotations

import threading

import pytest
import torch

import toprovar_fx
from toprovar_fx.errors import ScheduleError
from toprovar_fx.options import Options
from toprovar_fx.runtime.generation import current_generation, generation

from .models.fixtures import eager, traced
from .models.subjects import MANY, MANY_GRAPHS, SQUARE, generate, identical
from .replayed_steps import DECIDED, Kept, compiled
from .small_pipelines import PROMPTS, build

BEFORE = {"entropy_source": "previous_scale"}
SETTINGS = {
    "online, as whole steps": {"min_scale": 2, "tau": 0.0, **BEFORE, "unit": "step"},
    "given ratios": {"keep": MANY, **BEFORE, "unit": "step"},
    "fastvar": {"policy": "fastvar", "keep": MANY},
    "hack": {"keep": MANY, "cache_policy": "hack", "unit": "step"},
    "graph": {"min_scale": 2, "tau": 0.0, **BEFORE, "gate": "graph"},
}
MORE = {
    "online": {"min_scale": 2, "tau": 0.0},
    "own entropies": {"keep": MANY, "entropy_source": "same_layer"},
    "keys kept": {"keep": MANY, **BEFORE, "pruned_kv": "keep", "restore": "residual"},
    "frequency and exit": {"keep": MANY, "score": "frequency", "scale_exit": -1},
    "budget": {"budget": 1.2, **BEFORE, "ranking_depth": 0.5, "min_scale": 2, "unit": "step"},
    "sparsevar": {"policy": "sparsevar", "min_scale": 3},
    "random": {"policy": "random", "keep": MANY, "unit": "step"},
    "scalekv": {"preset": "lossless", "cache_policy": "scalekv", "cache_budget": 0.3},
}
NIGHTLY = [pytest.param(settings, id=name, marks=pytest.mark.nightly) for name, settings in MORE.items()]
CASES = [*(pytest.param(settings, id=name) for name, settings in SETTINGS.items()), *NIGHTLY]


@pytest.mark.parametrize("settings", CASES)
def test_a_pruning_program_computes_everything(settings):
    """Bit for bit the model's own result, and in between the pruned one, as before."""
    model, expected = traced("infinity"), eager("infinity")
    first = model(settings)
    with toprovar_fx.dense():
        whole = model(settings)
    again = model(settings)
    assert identical(whole.logits, expected.logits)
    assert identical(whole.state.keys, expected.state.keys)
    assert identical(whole.state.values, expected.state.values)
    ledger = whole.controller.ledger
    # A policy of sublayers runs three in every layer.
    assert {run.arm for run in ledger.runs} == {"dense"}
    assert len(ledger.runs) in (5 * model.subject.layers, 3 * 5 * model.subject.layers)
    assert not ledger.maps and not ledger.cached_rows
    assert whole.controller.options.preset == "lossless"
    assert not identical(first.logits, expected.logits), "nothing was pruned at all"
    assert identical(again.logits, first.logits)
    assert again.controller.ledger.gates == first.controller.ledger.gates


def test_recorded_steps_are_told_apart(recorder):
    """Scales that stand alike in both kinds of generation have plans and recordings of their own."""
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, DECIDED), compiled(subject, {**DECIDED, "unit": "block"})
        for seed in (1, 2):
            pruned = generate(subject, plain, seed=seed)
            assert identical(generate(subject, forward, seed=seed).logits, pruned.logits)
            expected = generate(subject, subject.model, seed=seed)
            with toprovar_fx.dense(), torch.compiler.set_stance("fail_on_recompile"):
                assert identical(generate(subject, forward, seed=seed).logits, expected.logits)


def test_a_pipeline_draws_the_dense_image(fresh_dynamo):
    dense = build(SQUARE)(PROMPTS[:2], seed=3)
    pipe = build(SQUARE)
    options = {"preset": "fast", "lowering": "eager", "keep": {-2: 0.25}}
    pipe.transformer = torch.compile(pipe.transformer, backend="toprovar", options=options)
    pruned = pipe(PROMPTS[:2], seed=3)
    with toprovar_fx.dense():
        whole = pipe(PROMPTS[:2], seed=3)
    assert len(pruned.bits) == 5 and pruned.report.exited_at == 5
    assert identical(whole.bits, dense.bits) and (whole.images == dense.images).all()
    assert whole.report.flops == whole.report.flops_dense
    assert whole.report.to_json()["options"]["preset"] == "lossless"


def test_it_ends_with_its_block_and_stays_in_its_thread():
    seen = {}

    def elsewhere():
        with generation(SQUARE):
            seen["thread"] = current_generation().dense

    with pytest.raises(KeyboardInterrupt), toprovar_fx.dense():
        with generation(SQUARE) as opened:
            assert opened.dense
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        raise KeyboardInterrupt
    with generation(SQUARE) as opened:
        assert not opened.dense
    assert seen == {"thread": False}


def test_a_generation_that_is_open_is_not_made_dense():
    with generation(SQUARE), pytest.raises(ScheduleError, match="expected it around the generation"):  # noqa: SIM117
        with toprovar_fx.dense():
            pass


def test_how_a_program_runs_is_kept():
    options = Options.parse(
        {"preset": "fast", "unit": "step", "verify": "always", "strict": True, "seed": 3, "lowering": "eager"}
    )
    own = options.unpruned
    kept = ("unit", "verify", "strict", "seed", "lowering")
    assert all(getattr(own, name) == getattr(options, name) for name in kept)
    assert not own.prunes and not own.compacts and own.unpruned == own
