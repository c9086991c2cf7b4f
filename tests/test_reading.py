"""What is measured is read when somebody asks for it, so that the host runs ahead of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toprovar_fx.criteria.weighing import weigh_layers
from toprovar_fx.options import Options
from toprovar_fx.policies.layer_plan import plan_layers
from toprovar_fx.policies.pacing import Pacing
from toprovar_fx.readback import Reading, sent
from toprovar_fx.runtime.deciders import Deciders
from toprovar_fx.runtime.generation import Generation
from toprovar_fx.runtime.ledger import Ledger
from toprovar_fx.runtime.report import report_of

from .models.fixtures import traced
from .models.subjects import OPEN, SQUARE
from .test_layer_plans import FINE, question
from .test_whole_step import BEFORE


@pytest.fixture
def read(monkeypatch):
    """The values that were asked for, in order."""
    seen: list[Any] = []
    tolist = Reading.tolist

    def watched(self: Reading) -> Any:
        seen.append(tolist(self))
        return seen[-1]

    monkeypatch.setattr(Reading, "tolist", watched)
    return seen


def trackers(**options: object) -> tuple[Deciders, Ledger]:
    ledger = Ledger()
    deciders = Deciders.begin(Options(**OPEN, min_scale=2, **options), SQUARE, 1, ledger)
    deciders.adopt(4, 1)
    return deciders, ledger


def run_scale(deciders: Deciders, scale: int) -> None:
    source = torch.Generator().manual_seed(scale)
    for layer in range(4):
        deciders.observe(layer, scale, torch.rand(2, SQUARE.tokens[scale], generator=source))
    deciders.end_scale(scale)


def test_rho_is_read_when_d_is_asked_for(read):
    deciders, ledger = trackers(tau=0.01)
    run_scale(deciders, 2)
    assert not read and not ledger.rho
    assert deciders.depth.depth == 2 == ledger.depth
    assert ledger.rho.keys() == {2} and len(read) == 1
    assert deciders.depth.beyond(3) and len(read) == 1


def test_a_depth_that_was_not_reached_is_looked_for_again(read):
    deciders, ledger = trackers(tau=1.0)
    run_scale(deciders, 2)
    run_scale(deciders, 3)
    assert deciders.depth.undecided
    assert ledger.rho.keys() == {2, 3} and ledger.depth is None


def test_the_scope_is_read_when_a_layer_asks_for_its_own(read):
    deciders, ledger = trackers(representative_scale=0.5, tau=1.0, layer_scope="online")
    assert deciders.scope.measured_at == 2
    run_scale(deciders, 2)
    assert not ledger.detail
    assert deciders.scope.detail(1) == ledger.detail[1]
    assert ledger.detail.keys() == {0, 1, 2, 3}


def test_what_nobody_asked_for_is_in_the_report(read):
    deciders, ledger = trackers(representative_scale=0.5, tau=0.01)
    run_scale(deciders, 2)
    deciders.settle()
    assert ledger.depth == 2 and ledger.rho and ledger.detail
    before = len(read)
    deciders.settle()
    assert len(read) == before


def test_a_generation_that_fails_reports_what_it_measured(read):
    options = Options(**OPEN, min_scale=2, representative_scale=0.5, layer_scope="online", tau=0.01)
    run = Generation(SQUARE, 1)
    controller = run.controller(options, 4)
    for scale in range(3):
        run.begin_scale(scale)
        for layer in range(4):
            controller.observe(layer, torch.rand(2, SQUARE.tokens[scale]), None, SQUARE.tokens[scale])
    controller.end_scale()
    assert not read
    report = report_of(run)
    assert report is not None and report.depth == 2
    assert report.roles.keys() == {0, 1, 2, 3}


def test_the_device_has_its_work_before_the_host_waits(read):
    events: list[str] = []

    def weigh(tensors: Any, **constants: Any) -> tuple[torch.Tensor, ...]:
        events.append("weighed")
        return weigh_layers(**tensors, **constants)

    def meanwhile() -> None:
        assert not read
        events.append("meanwhile")

    options = Options.parse({"preset": "criterion", **FINE})
    asks = [question(layer, guided=True, detail=0.5) for layer in range(3)]
    plans = plan_layers(options, asks, Pacing(weigh, meanwhile))
    assert events == ["weighed", "meanwhile"] and len(read) == 1
    given = [question(layer, guided=True, ratio=0.5) for layer in range(3)]
    assert all(plan.count == 10 for plan in plan_layers(options, given, Pacing(weigh, meanwhile)))
    # Ratios that are given wait for nothing.
    assert events == ["weighed", "meanwhile"] and len(read) == 1
    assert all(plan.keep is not None for plan in plans)


def test_a_generation_reads_once_per_decision(read):
    found = traced("infinity")({**OPEN, **BEFORE, "min_scale": 2, "tau": 0.01, "unit": "step"})
    ledger = found.controller.ledger
    pruned = {scale for scale, _ in ledger.keep_sets}
    assert pruned == {3, 4, 5}
    # D, R of the layers, and K of every scale past D.
    assert len(read) == 2 + len(pruned)


@pytest.mark.gpu
def test_a_reading_does_not_wait():
    done = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    reading = Reading(sent([1.5, 2.0], torch.float64, torch.device("cuda")) * 2)
    done.record()
    assert not done.query(), "the host waited for the device"
    assert reading.tolist() == [3.0, 4.0]
