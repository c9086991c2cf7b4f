"""Calls of graphs that stay dense: counted to the FLOP, kept off caches that lack rows, and cheap."""

from __future__ import annotations

import sys
import types
from collections import Counter

import pytest
import torch
from torch import fx, nn

from toprovar_fx import recording
from toprovar_fx.analysis.reasons import Fallback, Reason
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.errors import GraphError
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.size_reader import SizeReader
from toprovar_fx.options import Options
from toprovar_fx.runtime.generation import Generation, generation
from toprovar_fx.runtime.report import report_of
from toprovar_fx.schedules import Schedule

WIDTH = 8
SCHEDULE = Schedule(((1, 1), (2, 2), (4, 4)))
OPTIONS = Options(preset="lossless")
WHY = Fallback(Reason.NO_ATTENTION, node="add")


def captured(dynamic: bool) -> tuple[fx.GraphModule, list[object]]:
    """Dynamo's graph of a linear layer, and the inputs that it hands to a backend."""
    seen: list[tuple[fx.GraphModule, list[object]]] = []

    def keep(gm: fx.GraphModule, example_inputs: list[object]):
        seen.append((gm, example_inputs))
        return gm.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(nn.Linear(WIDTH, WIDTH), backend=keep, dynamic=dynamic)(torch.randn(2, 16, WIDTH))
    return seen[0]


class Subject:
    """A dense program, and what Dynamo's code calls it with."""

    def __init__(self, dynamic: bool = True, one_token: bool = False) -> None:
        graph, self._example = captured(dynamic)
        self.region = Region(graph, "eager")
        self.program = DenseProgram(graph.forward, self.region, [], OPTIONS, [WHY], one_token)

    def arguments(self, rows: int, tokens: int) -> list[object]:
        sizes, found = iter((rows, tokens)), []
        for value in self._example:
            if isinstance(value, nn.Parameter):
                found.append(value)
            elif isinstance(value, torch.Tensor):
                found.append(torch.randn(rows, tokens, WIDTH))
            else:
                found.append(next(sizes))
        return found

    def __call__(self, rows: int, tokens: int) -> None:
        with torch.no_grad():
            self.program(*self.arguments(rows, tokens))


def sizes_of(run: Generation) -> Counter[tuple[int, tuple[int, ...]]]:
    """How many calls the ledger has of each scale and sizes."""
    (controller,) = run.controllers
    return Counter((at, tuple(size for _, size in sizes)) for at, _, sizes in controller.ledger.other)


def flops(rows: int, tokens: int) -> int:
    return 2 * rows * tokens * WIDTH * WIDTH


def test_every_call_is_counted_at_its_own_scale_and_sizes():
    subject = Subject()
    calls = [(0, 2, 3), (0, 2, 3), (0, 4, 3), (0, 2, 3), (1, 2, 3), (2, 2, 5), (1, 2, 7), (1, 2, 3)]
    with generation(SCHEDULE, 1) as run:
        for scale, rows, tokens in calls:
            if scale != run.scale:
                run.begin_scale(scale)
            subject(rows, tokens)
        # Read while the generation runs, as budgets do, and again afterwards.
        assert sizes_of(run) == Counter((scale, (rows, tokens)) for scale, rows, tokens in calls)
    report = report_of(run)
    assert report is not None
    assert report.flops == sum(flops(rows, tokens) for _, rows, tokens in calls)
    for at in range(3):
        wanted = sum(flops(rows, tokens) for scale, rows, tokens in calls if scale == at)
        assert report.costs[at].flops == wanted


def test_graphs_of_constant_sizes_are_counted_too():
    subject = Subject(dynamic=False)
    with generation(SCHEDULE, 1) as run:
        for scale in range(3):
            run.begin_scale(scale)
            subject(2, 16)
        subject(2, 16)
    assert sizes_of(run) == {(0, ()): 1, (1, ()): 1, (2, ()): 2}
    assert report_of(run).flops == 4 * flops(2, 16)


def test_sizes_without_an_integer_input_are_read_off_the_tensors():
    subject = Subject()
    arguments = subject.arguments(3, 5)
    both = zip(subject.region.specs, arguments, strict=True)
    tensors = [(spec, value) for spec, value in both if spec.value is None]
    reader = SizeReader([spec for spec, _ in tensors])
    assert reader(tuple(value for _, value in tensors)) == subject.region.sizes(tuple(arguments))


def test_a_generation_gets_the_reasons_once_and_every_generation_anew():
    subject, quiet = Subject(), Subject(one_token=True)
    for _ in range(2):
        with generation(SCHEDULE, 1) as run:
            for scale in range(3):
                run.begin_scale(scale)
                subject(2, 3)
                quiet(2, 3)
        (controller,) = run.controllers
        assert controller.ledger.fallbacks == [WHY]
        assert len(controller.ledger.other) == 6
        assert not run.eager_scales


@pytest.mark.filterwarnings("ignore:toprovar")
def test_generations_that_take_turns_do_not_mix():
    subject = Subject()
    with generation(SCHEDULE, 1) as outer:
        outer.begin_scale(0)
        subject(2, 3)
        with generation(SCHEDULE, 1) as inner:
            inner.begin_scale(1)
            subject(2, 5)
            subject(2, 5)
        subject(2, 3)
    assert sizes_of(outer) == {(0, (2, 3)): 2}
    assert sizes_of(inner) == {(1, (2, 5)): 2}


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_cache_that_becomes_short_after_the_first_call_is_refused():
    subject = Subject()
    arguments = subject.arguments(2, 3)
    tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
    (cache,) = (value for value in tensors if not isinstance(value, nn.Parameter))
    with torch.no_grad(), generation(SCHEDULE, 1) as run:
        run.begin_scale(0)
        subject.program(*arguments)
        writer = run.controller(Options(preset="balanced", verify="never"), 2)
        writer.caches.hold(1, [cache])
        subject.program(*arguments)
        writer.caches.drop(1, 2)
        with pytest.raises(GraphError, match="lacks the rows of pruned tokens"):
            subject.program(*arguments)
        subject(2, 3)
        own = run.controller(OPTIONS, 0)
        assert len(own.ledger.other) == 3, "a refused call did not run"


def test_a_recording_that_opens_later_sees_the_calls():
    subject = Subject()
    with generation(SCHEDULE, 1) as run:
        run.begin_scale(0)
        subject(2, 3)
        with recording.recording() as seen:
            subject(2, 3)
            subject(2, 3)
    assert seen.calls == {subject.program: 2}
    assert seen.generations == [run]


def test_a_call_in_a_generation_runs_one_function_of_ours():
    """What a call costs beyond the graph, without a clock; `benchmarks/overhead.py` has the time."""
    subject = Subject()
    arguments = subject.arguments(2, 3)
    called: list[str] = []

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        if event == "call" and "toprovar_fx" in frame.f_code.co_filename:
            called.append(frame.f_code.co_name)

    with torch.no_grad(), generation(SCHEDULE, 1) as run:
        run.begin_scale(0)
        subject.program(*arguments)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            subject.program(*arguments)
        finally:
            sys.setprofile(before)
    assert called == ["__call__"]
