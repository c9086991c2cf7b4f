"""Steps of which some blocks are not understood: equal ones are one graph, and what has state runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.live_programs import programs
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.report import report_of
from toprovar_fx.schedules import Schedule

from .models.odd import HEADS, WIDTH, OddSubject, Plain
from .models.subjects import OPEN, SQUARE, Lists, Outcome, State, generate, identical
from .models.traced import under

pytestmark = pytest.mark.usefixtures("many_graphs")

LAYERS, MIXING = 5, (1, 2, 4)
PRUNED = {"keep": {4: 0.5, 5: {0: 0.25, 3: 0.5}}, "score": "random", "verify": "once"}


class Mixed(Plain):
    """Five blocks, of which three subtract the mean token: alike, and not understood."""

    def __init__(self) -> None:
        super().__init__()
        for name, width in (("qkv", 3 * WIDTH), ("out", WIDTH), ("mlp", WIDTH)):
            setattr(self, name, nn.ModuleList(nn.Linear(WIDTH, width) for _ in range(LAYERS)))
        self.register_buffer("count", torch.zeros(()))
        self.layer = 0

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        for self.layer in range(LAYERS):
            hidden = self.block(hidden, self.layer, keys, values, end)
        return self.leave(hidden)

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x - x.mean(1, keepdim=True) if self.layer in MIXING else x


class Counting(Mixed):
    """The head counts its calls, in what it returns as well."""

    def leave(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.head(x) + self.count


class CountingBlocks(Mixed):
    """The blocks that are not understood count their calls."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        if self.layer in MIXING:
            self.count.add_(1)
            return x - x.mean(1, keepdim=True) * self.count
        return x


class Noisy(Mixed):
    """The head draws random numbers."""

    def leave(self, x: Tensor) -> Tensor:
        return self.head(x) + torch.rand(len(x), 1, 1)


class MixedSubject(OddSubject):
    def __init__(self, kind: type[Mixed]) -> None:
        super().__init__(kind)
        self.layers = LAYERS

    def state(self, images: int, schedule: Schedule) -> State:
        self.model.count.zero_()
        shape = (2 * images, HEADS, schedule.ends[-1] + 1, WIDTH // HEADS)
        keys, values = ([torch.zeros(shape) for _ in range(LAYERS)] for _ in range(2))
        return State(Lists(keys, values))


def run(subject: MixedSubject, call: Any) -> Outcome:
    torch.manual_seed(0)
    return generate(subject, call)


def compiled(subject: MixedSubject, **options: object) -> Any:
    settings = {"lowering": "eager", **OPEN, "protected_layers_first": 0, **options}
    return under(subject, settings)


@pytest.mark.parametrize("more", [{}, {"unit": "step", "step_code": "shared"}, {"unit": "step"}], ids=str)
def test_equal_blocks_that_are_not_understood_are_one_graph(more):
    subject, others = MixedSubject(Mixed), programs()
    found = run(subject, compiled(subject, preset="lossless", **more))
    assert identical(found.logits, run(subject, subject.model).logits)
    assert {why.reason for why in found.controller.ledger.fallbacks} == {Reason.TOKEN_MIXING}
    assert not found.controller.ledger.notes
    (step,) = (each for each in programs() if isinstance(each, StepProgram) and each not in others)
    called = [
        step.step.graph.get_submodule(str(node.target))
        for node in step.step.graph.graph.nodes
        if node.op == "call_module"
    ]
    assert not [each for each in called if isinstance(each, fx.GraphModule)], "these run as traced"
    outside = [region for region in step.regions if region.name.startswith("outside the blocks: block")]
    assert len(outside) == 1 < len(MIXING)
    report = report_of(found.run)
    assert step.price(SQUARE).total_dense.flops == report.flops == report.flops_dense
    # Scales of L tokens that end at row E, of 2 rows; per layer qkv, out and mlp, scores and mix.
    scales = zip(SQUARE.tokens[1:], SQUARE.ends[1:], strict=True)
    expected = sum(2 * 2 * L * (LAYERS * (5 * WIDTH**2 + 2 * WIDTH * E) + 3 * WIDTH) for L, E in scales)
    assert sum(cost.flops for cost in list(report.costs.values())[1:]) == expected


@pytest.mark.parametrize("more", [{"step_code": "shared"}, {"step_code": "fused"}], ids=str)
def test_a_pruned_step_is_its_blocks(more):
    subject = MixedSubject(Mixed)
    found = run(subject, compiled(subject, unit="step", **PRUNED, **more))
    expected = run(subject, compiled(subject, unit="block", **PRUNED))
    assert found.arms(5) == expected.arms(5) == ["pruned", "pruned"]
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    assert not found.controller.ledger.notes
    assert report_of(found.run).flops == report_of(expected.run).flops


@pytest.mark.parametrize("kind", [Counting, CountingBlocks, Noisy])
def test_what_has_state_runs_once(kind):
    """The check of the pruned graphs ran the head and such blocks a second time, on what they count with."""
    subject = MixedSubject(kind)
    expected = run(subject, compiled(subject, unit="block", **PRUNED))
    counted = subject.model.count.clone()
    forward = compiled(subject, unit="step", **PRUNED)
    first, second = run(subject, forward), run(subject, forward)
    assert torch.equal(subject.model.count, counted)
    assert "pruned" in first.arms(5)
    assert identical(first.logits, expected.logits) and identical(second.logits, expected.logits)
    notes = {why.reason for whys in first.controller.ledger.notes.values() for why in whys}
    assert notes == {Reason.CHECKED_BY_BLOCK}
    assert not second.controller.ledger.notes, "checked, it runs whole"
