"""Inputs that are copied before it is known what runs, for as long as nobody else needs the buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toprovar_fx.lowering.region import Region
from toprovar_fx.readback import Reading
from toprovar_fx.runtime.buffers import Buffers, Stale
from toprovar_fx.runtime.cuda_graphs import GraphedCall, GraphMemory
from toprovar_fx.runtime.generation import generation
from toprovar_fx.runtime.recorded_inputs import Inputs
from toprovar_fx.runtime.step_run import StepRuns
from toprovar_fx.runtime.whole_step import WholeStep

from .captured import captured
from .models.recorders import CpuRecorder
from .models.subjects import MANY_GRAPHS, SQUARE, generate
from .replayed_steps import DECIDED, Kept, compiled
from .test_online_steps import ONLINE, assert_same


def scaled_sum(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return x * w + y


def shared_call() -> tuple[Region, GraphMemory, Inputs, GraphedCall]:
    """A call whose first two arguments are found by `Inputs` that others may ask too."""
    region = Region(captured(scaled_sum, torch.ones(3), torch.ones(3), torch.ones(3)), "eager")
    names = [str(node.target) for node in region.graph.graph.nodes][:2]
    memory, inputs = GraphMemory(CpuRecorder(), True), Inputs(names)
    return region, memory, inputs, GraphedCall(region, memory, shared=inputs)


def test_what_was_staged_is_not_looked_for_again(monkeypatch):
    region, memory, inputs, graphed = shared_call()
    x, w, y = torch.ones(3), torch.full((3,), 2.0), torch.ones(3)
    graphed(region, (x, w, y), print)
    asked: list[int] = []
    find = Buffers.find
    monkeypatch.setattr(
        Buffers,
        "find",
        lambda self, names, sources: (asked.append(len(names)), find(self, names, sources))[1],
    )
    x.add_(1)
    staged = inputs.stage((x, w, y), memory.buffers)
    assert not staged.stale and asked == [2]
    (found,) = graphed(region, (x, w, y), print, None, staged)
    assert torch.equal(found, torch.full((3,), 5.0)) and asked == [2, 1]


def test_buffers_that_another_call_filled_are_filled_again():
    """As when the generation of another thread comes between, on the same program."""
    region, memory, inputs, graphed = shared_call()
    mine = torch.ones(3), torch.full((3,), 2.0), torch.ones(3)
    theirs = torch.full((3,), 5.0), torch.full((3,), 7.0), torch.zeros(3)
    graphed(region, mine, print)
    staged = inputs.stage(mine, memory.buffers)
    assert graphed(region, theirs, print)[0][0] == 35
    assert graphed(region, mine, print, None, staged)[0][0] == 3


def test_what_other_inputs_staged_is_not_used():
    """They found the first argument alone: a recording that was found by it would have the second of then."""
    region, memory, _, graphed = shared_call()
    others = Inputs([str(node.target) for node in region.graph.graph.nodes][:1])
    x, y, factors = torch.ones(3), torch.ones(3), [torch.full((3,), value) for value in (2.0, 3.0)]
    graphed(region, (x, factors[0], y), print)
    for factor in factors:
        staged = others.stage((x, factor, y), memory.buffers)
        assert torch.equal(graphed(region, (x, factor, y), print, None, staged)[0], factor + 1)


def test_parameters_and_what_is_written_are_held():
    weight, cache, x = nn.Parameter(torch.ones(3)), torch.zeros(3), torch.ones(3)
    found = Inputs(["w", "cache", "n", "x"], held=[1]).find((weight, cache, 7, x), Buffers())
    (buffer,) = found.buffers
    assert found.addresses == (weight.data_ptr(), cache.data_ptr(), buffer.data_ptr())
    assert found.inputs.copied == [3] and [stale.source is x for stale in found.stale] == [True]


@pytest.fixture
def staged(monkeypatch):
    """How often a step was staged, with measurements that are always still on their way."""
    seen: list[object] = []
    stage = StepRuns.stage
    monkeypatch.setattr(Reading, "arrived", False)
    monkeypatch.setattr(StepRuns, "stage", lambda self, *given: (seen.append(self), stage(self, *given))[1])
    return seen


def test_a_step_that_waits_is_staged_and_gives_the_same(recorder, staged):
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, ONLINE, unit="step"), compiled(subject, ONLINE, unit="block")
        for seed in (1, 2, 1):
            before = len(staged)
            assert_same(generate(subject, forward, seed=seed), generate(subject, plain, seed=seed))
            assert len(staged) > before
    assert recorder.replays


def draw(subject: Kept, forward: Any) -> list[Tensor]:
    """A generation as of the pipeline, not in inference mode: there nobody can tell what was written to."""
    subject.use(SQUARE)
    logits = []
    with torch.no_grad(), generation(SQUARE, 1) as run:
        state = subject.state(1, SQUARE)
        for scale in range(len(SQUARE)):
            assert run.begin_scale(scale)
            hidden = subject.hidden(1, scale, SQUARE)
            logits.append(forward(*subject.arguments(hidden, state, SQUARE.ends[scale])))
    return logits


def test_nothing_is_left_to_copy_when_the_decision_is_known(recorder, monkeypatch):
    """Layers that leave no new map, since nobody ranks by it, do not move the inputs of the others."""
    subject, late, waits = Kept(), list[str](), [False]
    options = {**ONLINE, "depth": "fixed", "depth_scale": 2, "protected_layers_first": 2, "verify": "never"}
    stage, fill, run = StepRuns.stage, Buffers.filled, WholeStep.run

    def staged(self: StepRuns, *given: Any) -> Any:
        found = stage(self, *given)
        waits[-1] = True
        return found

    def filled(self: Buffers, stale: Sequence[Stale]) -> Any:
        late.extend(one.key[0] for one in stale if waits[-1])
        return fill(self, stale)

    def ran(self: WholeStep, *given: Any) -> Any:
        waits.append(False)
        return run(self, *given)

    with MANY_GRAPHS:
        forward = compiled(subject, options, unit="step")
        for _ in range(2):
            found = draw(subject, forward)
        monkeypatch.setattr(Reading, "arrived", False)
        monkeypatch.setattr(StepRuns, "stage", staged)
        monkeypatch.setattr(Buffers, "filled", filled)
        monkeypatch.setattr(WholeStep, "run", ran)
        assert all(map(torch.equal, draw(subject, forward), found))
    assert sum(waits) >= 3 and not late


def test_nothing_is_staged_where_nobody_waits(recorder, staged):
    subject = Kept()
    with MANY_GRAPHS:
        generate(subject, compiled(subject, DECIDED))
    assert not staged


def test_the_cache_of_a_skipped_layer_is_not_copied(recorder, monkeypatch):
    """The first plan writes the caches of all layers; those that a later one leaves out stay in place."""
    subject = Kept()
    copied: list[str] = []
    fill = Buffers.filled

    def watched(self: Buffers, stale: Sequence[Stale]) -> Any:
        copied.extend(one.key[0] for one in stale)
        return fill(self, stale)

    monkeypatch.setattr(Buffers, "filled", watched)
    with MANY_GRAPHS:
        forward, plain = compiled(subject, DECIDED), compiled(subject, {**DECIDED, "unit": "block"})
        for seed in (1, 2):
            assert_same(generate(subject, forward, seed=seed), generate(subject, plain, seed=seed))
    assert copied and not [name for name in copied if "cache" in name]


def test_a_first_plan_that_skips_layers_binds_no_later_one(recorder):
    """Graphs that write more caches than the first one did have inputs of their own."""
    subject = Kept()
    keep = {1: {2: 0.0}, 2: {2: 0.0}, 4: {1: 0.5}}
    options = {**DECIDED, "keep": keep, "restore": "residual", "score": "frequency"}
    with MANY_GRAPHS:
        forward, plain = compiled(subject, options), compiled(subject, {**options, "unit": "block"})
        for seed in (1, 2, 1):
            found = generate(subject, forward, seed=seed)
            assert_same(found, generate(subject, plain, seed=seed))
            assert not found.controller.ledger.notes
