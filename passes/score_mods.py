"""Graphs that change scores by their positions, where rows or keys are the kept tokens of the scale."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..analysis.flex import ScoreMod, given_to_flex
from .block_draft import BlockDraft


def keep_positions(draft: BlockDraft, node: fx.Node, copied: fx.Node) -> None:
    """Let the score_mod of a FlexAttention see the positions that queries and keys had among all tokens.

    Args:
        draft: the graph that is being written.
        node: the FlexAttention in the block.
        copied: its copy in the draft.
    """
    mod, call = draft.facts.score_mods[node], draft.facts.attention
    keys_kept = call is not None and node is call.entry and call.key in draft.kept
    if not (mod.by_query and node in draft.kept) and not (mod.by_key and keys_kept):
        return
    name = f"kept_score_mod_{len(draft.modules)}"
    draft.modules[name] = by_kept_positions(mod, node in draft.kept, keys_kept)
    given = given_to_flex(copied)
    with draft.graph.inserting_before(copied):
        given["score_mod"] = draft.graph.get_attr(name)
        keep = draft.gather.index(draft.facts.axes[node])
    given["score_mod_other_buffers"] = (*given["score_mod_other_buffers"], keep)  # type: ignore[misc]
    copied.args, copied.kwargs = tuple(given.values()), {}  # type: ignore[arg-type]


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
