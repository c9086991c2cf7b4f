"""Token counts that are constants make a graph per scale: Dynamo's limit on these, and the report of them."""

from __future__ import annotations

import inspect

import pytest
import torch

from toprovar_fx import backend as backend_module
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.errors import GraphError
from toprovar_fx.explanation.run import explaining
from toprovar_fx.live_programs import programs

from .constant_counts import run_static
from .models import odd
from .models.subjects import SQUARE, generate, identical


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
