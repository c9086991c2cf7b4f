"""Graphs that cannot be pruned cost what Inductor's cost: proxies that do not depend on the clock.

The times are measured by `benchmarks/overhead.py`.
"""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch
from torch import fx

import toprovar_fx
from benchmarks.overhead import Causal, Feedforward
from toprovar_fx import backend
from toprovar_fx.analysis.reasons import Unsupported
from toprovar_fx.backend import toprovar
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.live_programs import programs
from toprovar_fx.options import Options
from toprovar_fx.passes.context import PassContext
from toprovar_fx.passes.pipeline import rewrite_step
from toprovar_fx.runtime.generation import generation
from toprovar_fx.runtime.verify import PermutationCheck
from toprovar_fx.schedules import Schedule


@pytest.fixture(autouse=True)
def fresh(fresh_dynamo) -> None:
    """Every test captures anew."""


def captured(model: torch.nn.Module, width: int = 32) -> tuple[fx.GraphModule, list[object]]:
    """Dynamo's graph of a module and the inputs that it hands to a backend."""
    seen: list[tuple[fx.GraphModule, list[object]]] = []

    def keep(gm: fx.GraphModule, example_inputs: list[object]):
        seen.append((gm, example_inputs))
        return gm.forward

    with torch.no_grad():
        torch.compile(model.eval(), backend=keep, dynamic=True)(torch.randn(2, 16, width))
    return seen[0]


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> list[tuple[fx.GraphModule, object]]:
    """Stands in for Inductor; what it was given and what it returned."""
    made: list[tuple[fx.GraphModule, object]] = []

    def compile_fx(graph: fx.GraphModule, example_inputs: object):
        def call(*arguments: object) -> object:
            return graph.forward(*arguments)

        made.append((graph, call))
        return call

    monkeypatch.setattr(backend, "compile_with_dynamo_inputs", compile_fx)
    return made


def test_a_graph_without_attention_is_inductors_own(inductor):
    graph, inputs = captured(Feedforward(2, 32))
    options = Options(preset="lossless", seed=4711)
    with torch.no_grad():
        found = toprovar(graph, inputs, options=options)
    ((given, call),) = inductor
    assert given is graph, "Inductor gets the graph that Dynamo captured, not a copy"
    assert found is call, "Dynamo gets Inductor's function, not a wrapper"
    (program,) = programs(options)
    assert isinstance(program, DenseProgram), "the report still knows it"
    assert len(program.records) == 1


def test_a_graph_whose_calls_are_counted_has_a_wrapper(inductor):
    graph, inputs = captured(Feedforward(2, 32))
    with torch.no_grad(), generation(Schedule(((1, 1), (2, 2))), 1) as run:
        run.begin_scale(0)
        found = toprovar(graph, inputs, options={"preset": "lossless"})
    assert isinstance(found, DenseProgram)
    with torch.no_grad(), toprovar_fx.explaining("x"):
        assert isinstance(toprovar(graph, inputs, options={"preset": "lossless"}), DenseProgram)


def wrappers_passed(backend: str) -> int:
    """Of those that keep Dynamo from tracing, in a call within a generation."""
    passed = 0

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        nonlocal passed
        here = frame.f_code.co_filename.endswith("torch/_dynamo/eval_frame.py")
        passed += event == "call" and here and frame.f_code.co_name == "_fn"

    model = torch.compile(Feedforward(1, 32), backend=backend, dynamic=True)
    hidden = torch.randn(2, 16, 32)
    with torch.no_grad(), generation(Schedule(((1, 1), (2, 2))), 1) as run:
        run.begin_scale(0)
        model(hidden)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            model(hidden)
        finally:
            sys.setprofile(before)
    return passed


def test_a_call_passes_as_many_wrappers_as_inductors():
    """One costs as much as all that the program does itself."""
    assert wrappers_passed("toprovar") == wrappers_passed("inductor") > 0


@pytest.mark.filterwarnings("ignore:toprovar leaves a graph dense")
def test_refused_attention_is_given_to_inductor_unchanged(inductor):
    graph, inputs = captured(Causal(3, 32))
    before = graph.code
    with torch.no_grad():
        found = toprovar(graph, inputs, options={"preset": "balanced"})
    ((given, _),) = inductor
    assert given is graph and graph.code == before
    assert isinstance(found, DenseProgram)
    assert [record.name for record in found.records] == ["outline_blocks"], "no pass runs on what is refused"


def calls_per_node(graph: fx.GraphModule) -> float:
    """Calls of this package's functions while the graph is analysed, over the number of its nodes."""
    count = 0

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and "toprovar_fx" in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        with contextlib.suppress(Unsupported):
            rewrite_step(graph, Options(preset="lossless"), PassContext("eager", PermutationCheck("never")))
    finally:
        sys.setprofile(before)
    return count / len(graph.graph.nodes)


def test_a_graph_without_attention_is_looked_at_a_few_times():
    graph, _ = captured(Feedforward(12, 32))
    assert calls_per_node(graph) < 20


def test_refused_attention_takes_no_longer_per_node_in_a_deep_model():
    """Nothing in the analysis is quadratic in the number of layers."""
    shallow, deep = (calls_per_node(captured(Causal(depth, 32))[0]) for depth in (3, 24))
    assert deep < 1.5 * shallow
    assert deep < 200
