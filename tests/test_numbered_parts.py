"""What was stacked for all layers may be indexed in any way: equal layers are one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx

from toprovar_fx.analysis.numbered_parts import is_numbered_part
from toprovar_fx.models.text import TextContext
from toprovar_fx.passes.outline_blocks import outline_blocks

from .captured import captured
from .models.subjects import OPEN, TinyInfinity, generate, identical, worst
from .models.traced import Traced

Parts = Callable[[Tensor], Sequence[Tensor]]
WAYS: dict[str, Parts] = {
    "index": lambda stack: [stack[layer] for layer in range(len(stack))],
    "from the end": lambda stack: [stack[layer - len(stack)] for layer in range(len(stack))],
    "select": lambda stack: [stack.select(0, layer) for layer in range(len(stack))],
    "loop": list,
    "unbind": lambda stack: stack.unbind(),
}


@pytest.mark.parametrize("way", WAYS)
def test_equal_layers_share_one_graph(way, fresh_dynamo, monkeypatch):
    parts = WAYS[way]
    monkeypatch.setattr(TextContext, "by_layer", lambda self: (parts(self.keys), parts(self.values)))
    traced = Traced(TinyInfinity())
    keep = {3: 0.5, 4: {1: 0.25, 2: 0.5}}
    pruned = traced({**OPEN, "keep": keep})
    assert len({id(site.block) for site in outline_blocks(traced.dynamic).sites}) == 1
    assert not pruned.controller.ledger.fallbacks
    assert identical(
        traced({"preset": "lossless"}).logits, generate(traced.subject, traced.subject.model).logits
    )
    monkeypatch.undo()
    torch.compiler.reset()
    assert worst(pruned.logits, Traced(TinyInfinity())({**OPEN, "keep": keep}).logits) == 0.0


def parts_of(function: Callable[..., object], *inputs: Tensor) -> list[bool]:
    nodes = captured(function, *inputs).graph.nodes
    return [is_numbered_part(node) for node in nodes if node.op.startswith("call")]


def test_what_is_a_numbered_part_and_what_is_not():
    x, y = torch.ones(3, 4), torch.ones(3, 4)
    assert parts_of(lambda x, y: x[1], x, y) == [True]
    assert parts_of(lambda x, y: x[1, 2], x, y) == [True]
    assert parts_of(lambda x, y: x[1][2], x, y) == [True, True]
    assert parts_of(lambda x, y: x.narrow(0, 1, 1), x, y) == [True]
    assert parts_of(lambda x, y: x[1:], x, y) == [False]
    assert parts_of(lambda x, y: x[:, 1], x, y) == [False]
    assert parts_of(lambda x, y: x[y.long()[0]], x, y)[-1] is False
    assert parts_of(lambda x, y: (x + y)[1], x, y) == [False, False]


def written(x: Tensor, y: Tensor) -> Tensor:
    x[0, :2] = y[0, :2]
    return x[1] + y[1]


def test_parts_of_what_is_written_stay_where_they_are():
    nodes: list[fx.Node] = list(captured(written, torch.ones(3, 4), torch.ones(3, 4)).graph.nodes)
    of = {node.args[0].name for node in nodes if node.op.startswith("call") and is_numbered_part(node)}
    assert of == {next(node.name for node in nodes if "y" in node.name)}
