"""A scale that is run as in the image before, while the device still measures, never changes a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toprovar_fx.readback import Reading
from toprovar_fx.runtime import run_ahead
from toprovar_fx.runtime.report import report_of

from .models.subjects import OPEN, Outcome, generate, identical
from .replayed_steps import Kept, compiled

pytestmark = pytest.mark.usefixtures("many_graphs")

ONLINE = {**OPEN, "entropy_source": "previous_scale", "min_scale": 2, "tau": 0.5}
CASES = {
    "every layer ranks itself": {},
    "every image its own counts": {"buckets": tuple(at / 64 for at in range(8, 65)), "tau": 0.3},
    "a map of every image row": {"cfg_rows": "per_row", "batch_rule": "max", "tau": 0.4},
    "layers may be skipped": {"layer_skip_below": 0.66, "buckets": (0.5, 0.75), "tau": 0.4},
}
MORE_CASES = {
    "one layer ranks all": {"ranking_depth": 0.0, "tau": 0.4},
    "no layer scope": {"layer_scope": "off", "restore": "residual", "pruned_kv": "keep", "tau": 0.4},
    "the scope of given values": {
        "layer_scope": "fixed",
        "scope_values": (0.3, 0.9),
        "normalise": "rank",
        "tau": 0.4,
    },
    "the layer scope reads tokens": {"scope_of": "tokens", "tau": 0.4},
    "the scope of the scale before the first that prunes": {"representative_scale": 0.5, "min_scale": 2},
    "high entropies are kept": {"keep_low": False, "cfg_rows": "cond", "tau": 0.4},
}
SEEDS = (1, 12, 7)  # of three depths, whatever the version of torch


class Watched:
    """What happened, in order: "run" a step, "read" where the host waited, "done" after both of a guess."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        run, tolist = run_ahead.RunAhead._run, Reading.tolist

        def ahead(*given: Any) -> Any:
            found = run(*given)
            self.events.append("done")
            return found

        def read(reading: Reading) -> Any:
            self.events.append("read")
            return tolist(reading)

        called = run_ahead.StepRuns.__call__

        def runs(*given: Any) -> Any:
            self.events.append("run")
            return called(*given)

        monkeypatch.setattr(run_ahead.RunAhead, "_run", ahead)
        monkeypatch.setattr(run_ahead.StepRuns, "__call__", runs)
        monkeypatch.setattr(Reading, "tolist", read)

    @property
    def ahead(self) -> int:
        """Number of runs on a guess."""
        return self.events.count("done")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert identical(found.logits, expected.logits)
    ours, theirs = found.controller.ledger, expected.controller.ledger
    assert (ours.rho, ours.depth, ours.detail) == (theirs.rho, theirs.depth, theirs.detail)
    assert ours.keep_sets.keys() == theirs.keep_sets.keys()
    assert all(torch.equal(keep, theirs.keep_sets[place]) for place, keep in ours.keep_sets.items())
    assert [(run.scale, run.layer, run.arm, run.kept) for run in ours.runs] == [
        (run.scale, run.layer, run.arm, run.kept) for run in theirs.runs
    ]
    assert ours.gates == theirs.gates


@pytest.mark.parametrize(
    "case",
    [*CASES.values(), *(pytest.param(case, marks=pytest.mark.nightly) for case in MORE_CASES.values())],
    ids=[*CASES, *MORE_CASES],
)
def test_images_in_any_order(case, recorder, watched, monkeypatch):
    """With one image enough for a guess, most guesses are wrong where the images differ."""
    monkeypatch.setattr(run_ahead, "_IN_A_ROW", 1)
    subject, options = Kept(), {**ONLINE, **case}
    plain, forward = compiled(subject, {**options, "unit": "block"}), compiled(subject, options, unit="step")
    twice = 0
    for seed in (*SEEDS, 7, 1, 1, 12):
        found, expected = (generate(subject, call, seed=seed) for call in (forward, plain))
        assert_same(found, expected)
        twice += len(found.controller.ledger.run_twice)
        assert report_of(found.run).to_json()["run_twice"] == found.controller.ledger.run_twice
    assert 0 < twice <= watched.ahead


def test_the_host_waits_after_the_scale_is_under_way(recorder, watched):
    subject = Kept()
    forward = compiled(subject, {**ONLINE, "layer_scope": "off"}, unit="step")
    for _ in range(run_ahead._IN_A_ROW):
        generate(subject, forward)
        assert not watched.ahead
    watched.events.clear()
    found = generate(subject, forward)
    assert {scale for scale, _ in found.controller.ledger.keep_sets} == {3, 4, 5}
    assert not found.controller.ledger.run_twice
    # Scales 1 and 2; 3, for which K and D are read once it runs; 4 and 5, whose D is known.
    assert watched.events == ["run"] * 2 + ["run", "read", "read", "done"] + ["run", "read", "done"] * 2


def test_one_image_that_differs_is_no_guess(recorder, watched):
    subject = Kept()
    forward, plain = compiled(subject, ONLINE, unit="step"), compiled(subject, ONLINE, unit="block")
    for seed in (1, 1, 1, 12, 1, 1):
        assert_same(generate(subject, forward, seed=seed), generate(subject, plain, seed=seed))
    # Of the fourth image, wrongly; its places have to agree thrice again.
    wrong = watched.ahead
    assert wrong > 0
    generate(subject, forward, seed=1)
    generate(subject, forward, seed=1)
    assert watched.ahead > wrong


NEVER = {
    "checked every time": {"verify": "always"},
    "drawn tokens are chosen before": {"sampling": "bernoulli"},
    "nothing measured decides": {"keep": {-1: 0.5}},
}


@pytest.mark.parametrize("case", NEVER.values(), ids=NEVER)
def test_not_where_it_does_not_pay(case, recorder, watched):
    subject, options = Kept(), {**ONLINE, **case}
    forward, plain = compiled(subject, options, unit="step"), compiled(subject, options, unit="block")
    for _ in range(run_ahead._IN_A_ROW + 2):
        assert_same(generate(subject, forward), generate(subject, plain))
    assert not watched.ahead


@pytest.mark.parametrize("what", ["too much work", "not to be repeated", "no recordings"])
def test_not_where_it_may_not(what, recorder, watched, monkeypatch):
    if what == "too much work":
        monkeypatch.setattr(run_ahead, "_MOST_FLOPS", 0)
    elif what == "not to be repeated":
        monkeypatch.setattr(run_ahead, "obstacle_to_repeating", lambda graph: "it draws random numbers")
    else:
        monkeypatch.setattr("toprovar_fx.runtime.whole_step.graph_memory", lambda options, device: None)
    subject = Kept()
    forward = compiled(subject, ONLINE, unit="step")
    for _ in range(run_ahead._IN_A_ROW + 2):
        generate(subject, forward)
    assert not watched.ahead
