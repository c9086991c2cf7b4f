"""Equal graphs are run on fake tensors once; any difference that a run could tell makes another key."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import sympy
import torch
from torch import fx

from toprovar_fx.analysis.run_key import one_per_key, run_key
from toprovar_fx.cost import expressions
from toprovar_fx.cost.expressions import GraphCosts
from toprovar_fx.input_specs import InputSpec, tensor_spec

L = sympy.Symbol("L", integer=True, positive=True)
HIDDEN = tensor_spec((sympy.Integer(2), L, sympy.Integer(8)), torch.float32, torch.device("cpu"))
WEIGHT = tensor_spec((sympy.Integer(8), sympy.Integer(8)), torch.float32, torch.device("cpu"))


def made(name: str = "x", factor: float = 2.0, function: object = torch.relu, spec: InputSpec = HIDDEN):
    graph = fx.Graph()
    x, weight = graph.placeholder(name), graph.placeholder("weight")
    x.meta["toprovar_spec"], weight.meta["toprovar_spec"] = spec, WEIGHT
    product = graph.call_function(torch.matmul, (x, weight))
    scaled = graph.call_function(operator.mul, (product, factor))
    graph.output(graph.call_function(function, (scaled,)))
    return fx.GraphModule({}, graph)


def key(graph: fx.GraphModule, spec: InputSpec = HIDDEN):
    return run_key(graph, [spec, WEIGHT])


def test_equal_graphs_have_equal_keys_whatever_their_nodes_are_called():
    assert key(made()) == key(made("hidden")) is not None
    assert hash(key(made())) == hash(key(made("hidden")))


@pytest.mark.parametrize("other", [{"factor": 3.0}, {"factor": 2}, {"function": torch.sigmoid}])
def test_other_constants_types_and_operators_are_other_graphs(other):
    assert key(made(**other)) != key(made())


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": torch.float64},
        {"device": torch.device("meta")},
        {"shape": (sympy.Integer(2), sympy.Symbol("M", integer=True, positive=True), sympy.Integer(8))},
        {"stride": (L, sympy.Integer(1), 2 * L)},
    ],
)
def test_other_inputs_are_other_graphs(other):
    assert key(made(), replace(HIDDEN, **other)) != key(made())


def test_what_the_default_dtype_says_is_part_of_it():
    before = key(made())
    torch.set_default_dtype(torch.float64)
    try:
        assert key(made()) != before
    finally:
        torch.set_default_dtype(torch.float32)


def test_graphs_that_hold_something_have_no_key():
    graph = made()
    graph.register_buffer("constant", torch.ones(2))
    with graph.graph.inserting_before(next(iter(graph.graph.find_nodes(op="output")))):
        graph.graph.get_attr("constant")
    assert key(graph) is None


def test_under_autocast_there_is_no_key():
    with torch.autocast("cpu", torch.bfloat16):
        assert key(made()) is None


def test_without_a_key_nothing_is_shared():
    values = one_per_key(list)
    assert values("a") is values("a") is not values("b")
    assert values(None) is not values(None)


def test_a_graph_equal_to_one_that_was_priced_is_not_run(monkeypatch):
    # A constant of its own: no other test has priced this graph.
    first = GraphCosts(made(factor=0.8125))
    expected = [first.at(((L, length),)) for length in (5, 7, 9)]
    monkeypatch.setattr(expressions, "_count", lambda *given: pytest.fail("it was run again"))
    again = GraphCosts(made("hidden", factor=0.8125))
    assert [again.at(((L, length),)) for length in (5, 7, 9)] == expected
    assert again.at(((L, 11),)).flops == 2 * 2 * 11 * 8 * 8


def test_a_new_formula_for_flops_counts():
    factor = 0.6875
    before = GraphCosts(made(factor=factor)).at(((L, 5),)).flops
    kept = expressions.flop_registry.pop(torch.ops.aten.mm)
    try:
        assert GraphCosts(made(factor=factor)).at(((L, 5),)).flops < before
    finally:
        expressions.flop_registry[torch.ops.aten.mm] = kept
