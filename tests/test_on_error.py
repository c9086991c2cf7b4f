"""`on_error`: what becomes of a rewrite or a compilation that fails."""

from __future__ import annotations

import warnings

import pytest
import torch

from toprovar_fx import backend
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.lowering import region
from toprovar_fx.passes import rows

from .dynamo_errors import cause
from .models.attentions import AttendingSubject, Positional
from .models.subjects import Outcome, Subject, generate, identical, worst

pytestmark = pytest.mark.usefixtures("many_graphs")
PRUNED = {
    "preset": "criterion",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
    "keep": {-1: 0.5},
    "score": "random",
}


class BrokenError(RuntimeError):
    """What a compiler might raise."""


def fails(*args: object, **kwargs: object) -> object:
    raise BrokenError("as if the compiler had a fault\nand told more of it")


def run(subject: Subject, **options: object) -> Outcome:
    compiled = torch.compile(subject.model, backend="toprovar", options={**PRUNED, **options})
    return generate(subject, compiled)


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
def test_a_pass_that_fails_leaves_the_graph_dense(monkeypatch):
    monkeypatch.setattr(rows.Rewriter, "run", fails)
    subject = AttendingSubject(Positional)
    outcome = run(subject, lowering="eager")
    assert identical(outcome.logits, generate(subject, subject.model).logits)
    reasons = {why.reason: why for why in outcome.controller.ledger.fallbacks}
    assert Reason.FAILED_REWRITE in reasons
    assert "BrokenError: as if the compiler had a fault" in str(reasons[Reason.FAILED_REWRITE])
    torch.compiler.reset()
    with pytest.raises(Exception, match="as if the compiler") as caught:
        run(subject, lowering="eager", on_error="raise")
    assert isinstance(cause(caught.value), BrokenError)


@pytest.mark.parametrize("unit", ["block", "step"])
def test_blocks_that_do_not_compile_run_as_traced_and_stay_pruned(monkeypatch, unit):
    monkeypatch.setattr(region, "compile_with_inductor", fails)
    monkeypatch.setattr(backend, "compile_with_dynamo_inputs", lambda gm, inputs: gm.forward)
    subject = AttendingSubject(Positional)
    with pytest.warns(
        RuntimeWarning, match=r"NOT_COMPILED: .*: BrokenError: as if the compiler had a fault;"
    ):
        found = run(subject, unit=unit)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager = run(subject, unit=unit, lowering="eager")
    assert found.arms(5) == ["pruned", "pruned"]
    assert worst(found.logits, eager.logits) == 0
    noted = {why.reason for scale in found.controller.ledger.notes.values() for why in scale}
    assert Reason.NOT_COMPILED in noted
    assert sorted(found.controller.ledger.notes) == [1, 2, 3, 4, 5]
    assert not any(why.reason is Reason.NOT_COMPILED for why in eager.controller.ledger.fallbacks)
    torch.compiler.reset()
    with pytest.raises(Exception, match="as if the compiler") as caught:
        run(subject, unit=unit, on_error="raise")
    assert isinstance(cause(caught.value), BrokenError)


def test_a_dense_graph_that_does_not_compile_runs_as_traced(monkeypatch):
    monkeypatch.setattr(backend, "compile_with_dynamo_inputs", fails)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    x = torch.randn(2, 3, 4)
    with torch.inference_mode():
        with pytest.warns(RuntimeWarning, match="NOT_COMPILED: whole graph, dense: BrokenError"):
            found = torch.compile(model, backend="toprovar")(x)
        assert torch.equal(found, model(x))
        torch.compiler.reset()
        with pytest.raises(Exception, match="as if the compiler") as caught:
            torch.compile(model, backend="toprovar", options={"on_error": "raise"})(x)
    assert isinstance(cause(caught.value), BrokenError)
