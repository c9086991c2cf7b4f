"""`torch.compile(dynamic=True)`: every size that may vary is a symbol, and floats are inputs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from toprovar_fx.backend import toprovar
from toprovar_fx.live_programs import programs
from toprovar_fx.options import Options
from toprovar_fx.runtime.report import report_of

from .models.fixtures import NAMES, eager, traced
from .models.subjects import OPEN, generate, identical, worst
from .models.traced import Traced
from .oracles import replay

OFTEN = ("infinity", "prenorm-separate-absolute")
EVERY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly], id=name) for name in NAMES]
KEEP = {"keep": {-2: 0.5, -1: {1: 0.25, 2: 0.5, 3: 0.75}}, "entropy_source": "previous_scale"}


@cache
def dynamic(name: str) -> Traced:
    """A model that is traced with `dynamic=True`."""
    return Traced(traced(name).subject, dynamo={"dynamic": True})


def run(name: str, options: dict[str, object], **given: object):
    return dynamic(name)({**OPEN, **options}, **given)


@pytest.mark.parametrize("name", EVERY)
def test_keeping_everything_is_the_untouched_model(name):
    found = run(name, {"preset": "lossless"})
    assert not report_of(found.run).fallbacks
    assert identical(found.logits, eager(name).logits)


@pytest.mark.parametrize("name", EVERY)
def test_a_pruned_generation_is_the_oracles(name):
    found = run(name, KEEP, images=2)
    assert not report_of(found.run).fallbacks
    assert found.arms(5)[1:] == ["pruned"] * 3
    trace = replay(traced(name).subject, found.keeps, images=2)
    assert worst(found.logits, trace.logits) < 2e-5


def test_the_permutation_check_passes():
    found = run("infinity", KEEP)
    deviations = found.controller.ledger.deviations
    assert deviations and max(deviations.values()) < 1e-5


class Scaled(nn.Module):
    """Has a float of its own that changes, and nothing to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 0.5

    def forward(self, x):
        return nn.functional.layer_norm(x, (8,)) * self.factor


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_floats_of_a_dense_graph_stay_free(lowering):
    torch.compiler.reset()
    options = {"preset": "balanced", "lowering": lowering}
    model = Scaled()
    forward = torch.compile(model, backend=toprovar, options=options, dynamic=True)
    x = torch.randn(2, 5, 8)
    for factor in (0.5, 1.5, -2.0):
        model.factor = factor
        torch.testing.assert_close(forward(x), model(x))
    assert len(programs(Options.parse(options))) <= 2


def test_a_float_that_changes_is_traced_anew():
    """What is a constant of a pruned graph is guarded."""
    subject = traced("infinity").subject
    norms = [module for module in subject.model.modules() if hasattr(module, "eps")]
    before = [norm.eps for norm in norms]
    try:
        first = run("infinity", {"preset": "lossless"})
        known = len(dynamic("infinity").graphs)
        for norm in norms:
            norm.eps = 0.1
        second = run("infinity", {"preset": "lossless"})
        expected = generate(subject, subject.model)
    finally:
        for norm, eps in zip(norms, before, strict=True):
            norm.eps = eps
    assert len(dynamic("infinity").graphs) > known
    assert norms and not identical(first.logits, second.logits)
    assert identical(second.logits, expected.logits)
