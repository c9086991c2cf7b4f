"""The backend as a user meets it: recompiles, warnings, errors in options."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pytest
import torch

from toprovar_fx.backend import toprovar
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.errors import OptionError
from toprovar_fx.live_programs import programs
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram

from .models import odd
from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, TinyInfinity, TinyPreNorm, generate, identical

KEEP = {3: 0.5, 4: 0.5, 5: {1: 0.25, 2: 0.0, 3: 0.7}}
PRUNING = {**OPEN, "lowering": "eager", "keep": KEEP, "entropy_source": "dense_layer"}


@pytest.fixture(autouse=True)
def fresh(fresh_dynamo) -> Iterator[None]:
    with MANY_GRAPHS:
        yield


@pytest.mark.parametrize("subject", [TinyInfinity, lambda: TinyPreNorm(True, True)])
def test_a_second_generation_recompiles_nothing(subject):
    made = subject()
    forward = torch.compile(made.model, backend="toprovar", options=PRUNING, fullgraph=True)
    first = generate(made, forward)
    assert first.arms(5) == ["tapped", "pruned", "skipped", "pruned"]
    with torch.compiler.set_stance("fail_on_recompile"):
        assert identical(generate(made, forward).logits, first.logits)
        generate(made, forward, seed=2)


def test_one_graph_for_the_first_scale_and_one_for_all_others():
    subject = TinyPreNorm(True, True)
    options = Options.parse({**PRUNING, "seed": 77})
    generate(subject, torch.compile(subject.model, backend="toprovar", options=options.as_dict()))
    assert sorted(type(program).__name__ for program in programs(options)) == ["DenseProgram", "StepProgram"]


def test_a_model_of_another_width_before_changes_nothing():
    """Dynamo then takes the width for a symbol at first, and leaves sizes in the graph as operators."""
    for width in (64, 128):
        subject = TinyInfinity()
        config = InfinityConfig(**{**vars(subject.model.config), "width": width})
        subject.model, subject.width = Infinity(config).eval(), width
        forward = torch.compile(subject.model, backend="toprovar", options=PRUNING, fullgraph=True)
        outcome = generate(subject, forward)
        assert not outcome.controller.ledger.fallbacks
        assert outcome.arms(5) == ["tapped", "pruned", "skipped", "pruned"]


def test_a_generation_without_a_prunable_graph_warns():
    subject = odd.OddSubject(odd.NoAttention)
    forward = torch.compile(subject.model, backend="toprovar", options={"lowering": "eager"})
    with pytest.warns(RuntimeWarning, match="without a prunable graph.*NO_ATTENTION"):
        generate(subject, forward)


def test_nothing_warns_where_nothing_was_to_be_pruned():
    subject = odd.OddSubject(odd.NoAttention)
    forward = torch.compile(
        subject.model, backend="toprovar", options={"lowering": "eager", "preset": "lossless"}
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "toprovar", RuntimeWarning)  # torch warns of Python 3.13.0
        generate(subject, forward)


def test_scales_that_a_recompile_limit_sends_to_eager_are_warned_of():
    subject = TinyPreNorm(True, True)
    options = {**PRUNING, "seed": 78}
    forward = torch.compile(subject.model, backend="toprovar", dynamic=False, options=options)
    with (
        torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=False),
        pytest.warns(RuntimeWarning, match="recompile limit"),
    ):
        generate(subject, forward)


def raised(options: object = None, mode: str | None = None) -> str:
    """The message of the OptionError that compiling and calling a model ends in."""
    subject = odd.OddSubject(odd.Plain)
    with pytest.raises(Exception) as caught:
        generate(subject, torch.compile(subject.model, backend="toprovar", options=options, mode=mode))
    error = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(error, OptionError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.5}, "unknown option 'keep_ratio'.*nearest valid: keep"),
        ({"restore": "cahce"}, "restore='cahce'.*nearest valid: '?cache"),
        ({"preset": "quick"}, "preset='quick'"),
        ({"tau": 1.4}, "tau=1.4.*nearest valid: 1"),
    ],
)
def test_options_that_are_not_valid(options, message):
    assert re.search(message, raised(options))


def test_a_mode_is_refused():
    assert "presets are given as options" in raised(mode="max-autotune")


def test_the_captured_graph_is_not_changed():
    seen = []

    def backend(gm, example_inputs):
        before = gm.code
        program = toprovar(gm, example_inputs, options={**PRUNING, **OPEN})
        seen.append((before, gm, program))
        return program

    subject = TinyInfinity()
    generate(subject, torch.compile(subject.model, backend=backend))
    assert [type(program) for _, _, program in seen] == [DenseProgram, StepProgram]
    assert all(gm.code == before for before, gm, _ in seen)
    assert seen[1][2].regions


def test_options_may_be_a_record():
    subject = odd.OddSubject(odd.Plain)
    forward = torch.compile(
        subject.model, backend=lambda *a: toprovar(*a, options=Options(lowering="eager", preset="criterion"))
    )
    assert len(generate(subject, forward).logits) == len(SQUARE)
