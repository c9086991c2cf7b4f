"""Every pass: neutral settings leave the graph as it was, and the record lists the sites that it rewrote."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.options import Options
from toprovar_fx.passes.attention_entropy import attention_entropy
from toprovar_fx.passes.cache_offset import cache_offset
from toprovar_fx.passes.context import PassContext
from toprovar_fx.passes.layer_skip import layer_skip
from toprovar_fx.passes.outline_blocks import outline_blocks
from toprovar_fx.passes.pipeline import rewrite_step
from toprovar_fx.passes.row_plan import GatherAt, RowPlan
from toprovar_fx.passes.rows import rewrite_rows
from toprovar_fx.passes.scale_depth_gate import scale_depth_gate
from toprovar_fx.passes.step import Step
from toprovar_fx.passes.token_gather import token_gather
from toprovar_fx.runtime.gates import DenseBlock, EntropyTap, LayerSkipGate, ScaleDepthGate
from toprovar_fx.runtime.token_gates import OwnEntropyGate, TokenGate
from toprovar_fx.runtime.verify import PermutationCheck

from .models.fixtures import NAMES, traced
from .models.subjects import OPEN

LOSSLESS = Options(preset="lossless")
KEEP = Options(**OPEN, keep={-1: 0.5}, entropy_source="dense_layer")


def context() -> PassContext:
    return PassContext("eager", PermutationCheck("never"))


def outlined() -> Step:
    return outline_blocks(traced("infinity").dynamic)


def prepared(options: Options, passes: PassContext) -> Step:
    """The step as the token passes find it."""
    step = outlined()
    for run in (cache_offset, attention_entropy, scale_depth_gate):
        step = run(step, options, passes).step
    return step


@pytest.mark.parametrize("run", [attention_entropy, scale_depth_gate, token_gather, layer_skip])
def test_neutral_settings_leave_the_step_alone(run):
    passes = context()
    step = prepared(LOSSLESS, passes)
    result = run(step, LOSSLESS, passes)
    assert result.step is step
    assert (result.record.modified, result.record.sites) == (False, [])


@pytest.mark.parametrize("name", NAMES)
def test_outlining_leaves_the_captured_graph_alone(name):
    graph = traced(name).dynamic
    before = graph.code
    step = outline_blocks(graph)
    assert graph.code == before
    assert [site.layer for site in step.sites] == [0, 1, 2, 3]
    calls = [node.target for node in step.graph.graph.nodes if node.op == "call_module"]
    assert [call for call in calls if call.startswith("block")] == [f"block_{layer}" for layer in range(4)]


def test_a_neutral_pipeline_leaves_the_graph_text_identical():
    before = outlined().graph.code
    step, records = rewrite_step(traced("infinity").dynamic, LOSSLESS, context())
    assert step.graph.code == before
    assert {record.name: record.sites for record in records} == {
        "outline_blocks": [0, 1, 2, 3],
        "cache_offset": [0, 1, 2, 3],
        "attention_entropy": [],
        "scale_depth_gate": [],
        "token_gather": [],
        "layer_skip": [],
        "graph_gate": [],
    }


def test_the_neutral_row_plan_copies_the_block():
    """Only the cache bounds differ from the traced block: they are the layer's own."""
    block = outlined().sites[0].block
    rewritten = rewrite_rows(block, RowPlan()).graph

    def operators(graph):
        moved = {"size", "add", "getitem", "sub"}
        names = [
            getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes if n.op.startswith("call")
        ]
        return [name for name in names if name not in moved]

    assert operators(rewritten) == operators(block.graph)
    assert "gather" not in rewritten.code
    assert "with_entropy" not in rewritten.code


def test_cache_offset_takes_every_block():
    result = cache_offset(outlined(), LOSSLESS, context())
    assert result.record.sites == [0, 1, 2, 3]
    assert all(type(result.step.module(site)) is DenseBlock for site in result.step.sites)


def test_attention_entropy_taps_every_block_that_can_be_asked():
    passes = context()
    step = cache_offset(outlined(), KEEP, passes).step
    result = attention_entropy(step, KEEP, passes)
    assert result.record.sites == [0, 1, 2, 3]
    tap = result.step.module(result.step.sites[1])
    assert type(tap) is EntropyTap
    assert "attention_with_entropy" in tap.tapped.region.graph.code
    frequency = Options(**OPEN, keep={-1: 0.5}, score="frequency")
    assert not attention_entropy(step, frequency, passes).record.modified


@pytest.mark.parametrize(("first", "last", "sites"), [(1, 0, [1, 2, 3]), (2, 1, [2]), (0, 4, [])])
def test_scale_depth_gate_leaves_protected_layers_alone(first, last, sites):
    options = Options(keep={-1: 0.5}, protected_layers_first=first, protected_layers_last=last)
    passes = context()
    result = scale_depth_gate(cache_offset(outlined(), options, passes).step, options, passes)
    assert result.record.sites == sites
    gated = [site.layer for site in result.step.sites if type(result.step.module(site)) is ScaleDepthGate]
    assert gated == sites


def test_token_gather_and_layer_skip_take_the_late_side():
    options = Options(**OPEN, keep={-1: {1: 0.0, 2: 0.5}})
    passes = context()
    step = prepared(options, passes)
    gathered = token_gather(step, options, passes)
    assert gathered.record.sites == [1, 2, 3]
    skipping = layer_skip(gathered.step, options, passes)
    assert skipping.record.sites == [1, 2, 3]
    gate = skipping.step.module(skipping.step.sites[2])
    assert type(gate) is ScaleDepthGate
    assert type(gate.early) is EntropyTap
    assert type(gate.late) is LayerSkipGate
    assert type(gate.late.kept) is TokenGate
    assert "gather" in gate.late.kept.pruned.region.graph.code
    assert not layer_skip(gathered.step, KEEP, passes).record.modified


def test_a_layer_that_ranks_itself_gathers_after_attention():
    options = Options(**OPEN, keep={-1: 0.5}, entropy_source="same_layer")
    passes = context()
    result = token_gather(prepared(options, passes), options, passes)
    gate = result.step.module(result.step.sites[1]).late
    assert type(gate) is OwnEntropyGate
    assert "select_tokens" in gate.selecting.region.graph.code


@pytest.mark.parametrize("where", list(GatherAt))
def test_no_row_is_gathered_twice_by_the_same_index(where):
    for name in NAMES:
        step = outline_blocks(traced(name).dynamic)
        graph = rewrite_rows(step.sites[0].block, RowPlan(where)).graph
        gathers = [node for node in graph.graph.nodes if getattr(node.target, "__name__", "") == "gather"]
        assert len({node.args[0] for node in gathers}) == len(gathers)
        scatters = [node for node in graph.graph.nodes if getattr(node.target, "__name__", "") == "scatter"]
        assert len(scatters) == 1


def test_equal_layers_share_their_compiled_graphs():
    passes = context()
    rewrite_step(traced("infinity").dynamic, KEEP, passes)
    # One dense, one tapped, one pruned.
    assert len(passes.regions) == 3


def test_entropies_are_those_of_the_queries_that_are_computed():
    """With `pruned_kv="keep"` queries are gathered: the tap sees the kept ones."""
    rewritten = rewrite_rows(outlined().sites[1].block, RowPlan(GatherAt.QUERY, entropy=True)).graph.graph
    (both,) = (node for node in rewritten.nodes if "attention_with_entropy" in str(node.target))
    assert both.args[0].target is torch.gather
