"""AOTAutograd's disk cache: block graphs are found in it again, and nothing stale is."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from toprovar_fx._torch_private import SymbolicInputs, compile_with_inductor
from toprovar_fx._torch_private import inductor as private
from toprovar_fx.input_specs import InputSpec, tensor_spec

L = sympy.Symbol("L", integer=True, positive=True)


def graph_of(*steps):
    """Methods called on an input [2, L, 8] one after another."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name, *arguments in steps:
        value = graph.call_method(name, (value, *arguments))
    graph.output((value,))
    return fx.GraphModule({}, graph)


def specs() -> list[InputSpec]:
    return [tensor_spec((sympy.Integer(2), L, sympy.Integer(8)), torch.float32, torch.device("cpu"))]


def build(graph):
    counters.clear()
    return compile_with_inductor(graph, SymbolicInputs(specs(), {L: 9}))


def autograd_cache() -> dict[str, int]:
    found = counters["aot_autograd"]
    return {name: found[f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")}


@pytest.fixture
def empty_cache():
    with fresh_cache():
        yield


def test_a_graph_of_methods_is_found_again(empty_cache):
    graph, x = graph_of(("sin",), ("transpose", 1, 2), ("reshape", 2, -1)), torch.randn(2, 9, 8)
    first = build(graph)
    assert autograd_cache() == {"hit": 0, "miss": 1, "bypass": 0}
    again = build(graph)
    assert autograd_cache() == {"hit": 1, "miss": 0, "bypass": 0}
    for compiled in (first, again):
        torch.testing.assert_close(compiled.at({L: 9})(x)[0], graph(x)[0])
        assert compiled.holds([x], {L: 9})


def test_other_operators_of_ours_find_nothing(empty_cache, monkeypatch):
    """A new version may have other operators of the same name."""
    graph = graph_of(("sin",), ("cos",))
    build(graph)
    monkeypatch.setattr(private, "_operators_source", lambda: "another version")
    build(graph)
    assert autograd_cache() == {"hit": 0, "miss": 1, "bypass": 0}
    assert torch.compiler.config.cache_key_tag == "", "the process's setting is left as it was"


def test_an_operator_that_writes_is_no_other_by_its_name(empty_cache):
    """The schema counts: common subexpressions are found over an operator that writes nothing."""
    tags = []
    for written in ("", "(a!)"):
        with torch.library._scoped_library("toprovar_test", "FRAGMENT") as library:
            library.define(f"touch(Tensor{written} x) -> Tensor")
            graph = fx.Graph()
            operator = torch.ops.toprovar_test.touch.default
            graph.output((graph.call_function(operator, (graph.placeholder("x"),)),))
            tags.append(private._cache_key_tag(fx.GraphModule({}, graph)))
    assert tags[0] != tags[1] and "touch(Tensor(a!) x)" in tags[1]


def test_sizes_that_depend_on_data_still_compile(empty_cache):
    graph = fx.Graph()
    x = graph.placeholder("x")
    positive = graph.call_method("gt", (x, 0))
    graph.output((graph.call_method("sum", (graph.call_method("masked_select", (x, positive)),)),))
    module, x = fx.GraphModule({}, graph), torch.randn(2, 9, 8)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = build(module)
    torch.testing.assert_close(compiled.at({L: 9})(x)[0], module(x)[0])


def test_an_input_whose_sizes_change_in_place_is_the_compilers_own(empty_cache):
    """The values that the graph is described by come from another run than its compilation."""
    graph = graph_of(("unsqueeze_", 1), ("sin",))
    compiled = build(graph)
    x = torch.randn(2, 9, 8)
    assert compiled.holds([x], {L: 9})
    torch.testing.assert_close(compiled.at({L: 9})(x.clone())[0], graph(x.clone())[0])
