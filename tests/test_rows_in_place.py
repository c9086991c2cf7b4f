"""Pruned blocks that write into the hidden state they were given: only where nobody else reads it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn

from toprovar_fx.lowering.joined_layers import JoinedLayer, Selection
from toprovar_fx.lowering.linked_step import _Linker
from toprovar_fx.lowering.rows_in_place import with_rows_in_place
from toprovar_fx.program import StepProgram

from .models.fixtures import eager, traced
from .models.subjects import OPEN, identical, worst
from .models.traced import Traced

KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {0: 1.0, 1: 0.3, 2: 0.6}}
OPTIONS = {**OPEN, "protected_layers_first": 0, "keep": KEEP, "entropy_source": "previous_scale"}
BARE = {**OPTIONS, "restore": "residual"}


@pytest.fixture
def spare(monkeypatch) -> list[bool]:
    """Whether the hidden state was spare, of every pruned block that is linked."""
    found: list[bool] = []
    run_pruned = _Linker.run_pruned

    def noted(self, region, arguments, spare):
        assert region.rows_in_place() is not None
        found.append(spare)
        return run_pruned(self, region, arguments, spare)

    monkeypatch.setattr(_Linker, "run_pruned", noted)
    return found


def pruned_graphs(options: dict[str, object]) -> list[fx.GraphModule]:
    """The graphs of pruned blocks that these options lead to."""
    model = traced("infinity")
    with mock.patch.object(model, "programs", {}):
        model(options)
        made = list(model.programs.values())
    return [
        region.graph
        for program in made
        if isinstance(program, StepProgram)
        for region in program.regions
        if "K tokens" in region.name and "in place" not in region.name
    ]


def test_the_result_is_the_input_itself_and_nothing_else_changes():
    graphs = pruned_graphs(BARE)
    assert graphs
    for graph in graphs:
        changed = with_rows_in_place(graph)
        assert changed is not None
        names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
        assert [str(node.target) for node in changed.graph.nodes if node.op == "placeholder"] == names
        written = [node for node in changed.graph.nodes if node.target == "index_put_"]
        assert len(written) == 1 and written[0].args[0] is next(iter(changed.graph.nodes))
        assert not any(node.target is torch.scatter for node in changed.graph.nodes)


def test_updates_for_tokens_that_are_not_computed_need_a_copy():
    restored = [graph for graph in pruned_graphs(OPTIONS) if "restored" in str(graph.code)]
    assert restored and all(with_rows_in_place(graph) is None for graph in restored)


def test_rows_are_put_where_scatter_puts_them():
    def block(hidden: Tensor, keep: Tensor, weight: Tensor) -> Tensor:
        index = keep.unsqueeze(-1).expand(-1, -1, 5)
        rows = hidden.gather(1, index) * weight
        return torch.scatter(hidden, 1, index, rows)

    graph = fx.symbolic_trace(block)
    changed = with_rows_in_place(graph)
    assert changed is not None
    hidden, keep = torch.randn(3, 7, 5), torch.stack([torch.randperm(7)[:4] for _ in range(3)])
    given = hidden.clone()
    found = changed(given, keep, torch.tensor(2.0))
    assert found is given and torch.equal(found, graph(hidden, keep, torch.tensor(2.0)))


@pytest.mark.parametrize(
    "block",
    [
        lambda hidden, keep, rows: torch.scatter(hidden, 2, keep.unsqueeze(-1).expand(-1, -1, 5), rows),
        lambda hidden, keep, rows: torch.scatter(hidden, 1, keep.unsqueeze(1).expand(-1, -1, 5), rows),
        lambda hidden, keep, rows: torch.scatter(hidden * 2, 1, keep.unsqueeze(-1).expand(-1, -1, 5), rows),
        lambda hidden, keep, rows: (
            torch.scatter(hidden, 1, keep.unsqueeze(-1).expand(-1, -1, 5), rows),
            hidden,
        ),
        lambda hidden, keep, rows: torch.scatter(hidden, 1, keep.unsqueeze(-1).expand(-1, -1, 5), rows) + 1,
    ],
    ids=["other axis", "other index", "other base", "input returned", "not the end"],
)
def test_graphs_that_end_otherwise_are_left_alone(block):
    assert with_rows_in_place(fx.symbolic_trace(block)) is None


def test_all_but_the_first_pruned_layer_need_no_copy(spare):
    options = {**BARE, "keep": {4: {0: 0.5, 1: 0.5, 2: 0.0, 3: 0.25}, 5: 0.25}}
    expected = traced("infinity")(options)
    found = traced("infinity")({**options, "unit": "step"})
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    # Layer 2 is skipped once: what it hands on is a copy already.
    assert spare == [False, True, True, False, True, True, True]


def test_what_another_node_reads_is_not_spare():
    graph = fx.Graph()
    hidden = graph.placeholder("hidden")
    first = graph.call_module("a", (hidden,))
    second = graph.call_module("b", (first,))
    third = graph.call_module("c", (second,))
    graph.output((third, first))
    step = fx.GraphModule({"a": nn.Identity(), "b": nn.Identity(), "c": nn.Identity()}, graph)
    layers = [JoinedLayer(), JoinedLayer(), JoinedLayer(plain=step)]
    linker = _Linker(step, {"a": 0, "b": 1, "c": 2}, layers, Selection("shared", True))
    spare = {node.name: linker._is_spare(node) for node in step.graph.nodes if node.op != "output"}
    assert spare == {"hidden": False, "a": False, "b": True, "c": False}


def test_the_callers_hidden_state_is_not_written_to(spare):
    model = traced("infinity")
    seen: list[tuple[Tensor, Tensor]] = []
    arguments = model.subject.arguments

    def kept(hidden, *given):
        seen.append((hidden, hidden.clone()))
        return arguments(hidden, *given)

    model.subject.arguments = kept
    try:
        model({**BARE, "keep": {4: 0.5, 5: 0.25}, "unit": "step", "protected_layers_last": 1})
    finally:
        del model.subject.arguments
    assert seen and all(torch.equal(hidden, copy) for hidden, copy in seen)
    assert False in spare


@pytest.mark.slow
def test_inductor_writes_in_place_what_the_oracle_computes(spare):
    options = {**BARE, "keep": {5: {1: 0.25, 2: 0.5, 3: 0.25}}, "ranking_depth": 0.0, "unit": "step"}
    model = traced("infinity")
    expected = model(options)
    found = Traced(model.subject)({**options, "lowering": "inductor"})
    assert found.arms(5) == ["dense", "pruned", "pruned", "pruned"] and True in spare
    assert worst(found.logits, expected.logits) < 1e-4
    assert worst(found.logits[:5], eager("infinity").logits[:5]) < 1e-4
