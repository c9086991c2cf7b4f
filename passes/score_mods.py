"""Graphs that change scores by their positions, where rows or keys are the kept tokens of the scale."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..analysis.flex import ScoreMod


def by_kept_positions(mod: ScoreMod, query: bool, key: bool) -> fx.GraphModule:
    """The score_mod with one more buffer, `keep` int64 [R, K], behind the others.

    What has position i among the kept tokens of batch row b stood at `keep[b, i]`.

    Args:
        mod: how scores are changed.
        query: whether the queries are kept tokens.
        key: whether the keys are.
    """
    graph = fx.Graph()
    holders = [node for node in mod.graph.graph.nodes if node.op == "placeholder"]
    mapped: dict[fx.Node, Any] = {node: graph.node_copy(node) for node in holders}
    keep = graph.placeholder("keep")
    row = mapped[holders[1]]
    for holder, chosen in ((holders[3], query and mod.by_query), (holders[4], key and mod.by_key)):
        if chosen:
            mapped[holder] = graph.call_function(operator.getitem, (keep, (row, mapped[holder])))
    for node in mod.graph.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], lambda operand: mapped[operand]))
        elif node.op != "placeholder":
            mapped[node] = graph.node_copy(node, lambda operand: mapped[operand])
    graph.lint()
    return fx.GraphModule(mod.graph, graph, class_name="ScoreMod")
