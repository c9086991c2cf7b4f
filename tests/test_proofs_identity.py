"""Proof: whatever keeps everything computes, bit for bit, what the untouched model computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.errors import GraphError
from toprovar_fx.lowering.region import Region
from toprovar_fx.passes.outline_blocks import outline_blocks
from toprovar_fx.passes.row_plan import GatherAt, RowPlan
from toprovar_fx.passes.rows import rewrite_rows
from toprovar_fx.passes.step import BlockGraph
from toprovar_fx.runtime.arms import Arm
from toprovar_fx.runtime.verify import PermutationCheck

from .models.fixtures import NAMES, eager, traced
from .models.subjects import OPEN, identical
from .models.traced import record_inputs

PLANS = [RowPlan(where, restored=restored) for where in GatherAt for restored in (False, True)]
ROTATED = [name for name in NAMES if "absolute" not in name]


def label(plan: RowPlan) -> str:
    return f"{plan.gather_at.name}-{'cache' if plan.restored else 'residual'}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "lossless"},
        {"keep": {-1: 1.0, -2: 1.0}},
        {"depth": "fixed", "depth_scale": -1},
        {"tau": 1.0},
        {"depth": "off"},
        {"alpha_min": 0.0, "alpha_max": 0.0},
        {"keep": {-1: 0.5}, "protected_layers_first": 4},
    ],
    ids=["lossless", "keep-1", "depth-last", "never-reached", "depth-off", "alpha-0", "all-protected"],
)
def test_keeping_everything_is_the_untouched_model(name, options):
    outcome = traced(name)({**OPEN, **options})
    assert identical(outcome.logits, eager(name).logits)
    assert "pruned" not in outcome.arms(5)
    assert not outcome.controller.ledger.fallbacks


@pytest.fixture(scope="module")
def blocks(fresh_traces):
    """Per model: its block graph and the inputs that layer 2 got at scales 1 .. 5."""
    found = {}

    def get(name: str) -> tuple[BlockGraph, list[tuple[object, ...]]]:
        if name not in found:
            step = outline_blocks(traced(name).dynamic)
            assert len({id(site.block) for site in step.sites}) == 1, "equal layers share one graph"
            assert all(site.block.facts is not None for site in step.sites)
            found[name] = step.sites[2].block, record_inputs(traced(name), step)[2].inputs
            assert found[name][1], "nothing was recorded"
        return found[name]

    return get


def make_arm(block: BlockGraph, plan: RowPlan) -> Arm:
    rewritten = rewrite_rows(block, plan)
    return Arm(Region(rewritten.graph, "eager"), rewritten.select, rewritten.start)


def call(arm: Arm, inputs: tuple[object, ...], *extra: Tensor) -> tuple[object, list[Tensor]]:
    """Run an arm on copies: its result, and its inputs afterwards (the caches are among them)."""
    own = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
    result = arm.region(*arm.arguments(own, arm.begin(own), *extra))
    return result, [x for x in own if isinstance(x, Tensor)]


def extras(plan: RowPlan, keep: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    return (keep, torch.full_like(hidden, 3.0)) if plan.restored else (keep,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS, ids=label)
def test_the_gathered_graph_with_all_tokens_in_order_is_the_dense_block(blocks, name, plan):
    block, recorded = blocks(name)
    dense, pruned = make_arm(block, RowPlan()), make_arm(block, plan)
    for inputs in recorded:
        hidden = inputs[0]
        keep = torch.arange(hidden.shape[1]).expand(len(hidden), -1).contiguous()
        expected, after = call(dense, inputs)
        found, after_pruned = call(pruned, inputs, *extras(plan, keep, hidden))
        assert torch.equal(found, expected)
        assert identical(after_pruned, after), "the caches differ"


def permutations(hidden: Tensor) -> Tensor:
    rows, length = hidden.shape[:2]
    keep = torch.stack([torch.randperm(length) for _ in range(rows)])
    assert not torch.equal(keep[0], keep[1])
    return keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS, ids=label)
def test_the_gathered_graph_with_all_tokens_in_any_order_is_the_dense_block(blocks, name, plan):
    block, recorded = blocks(name)
    dense, pruned = make_arm(block, RowPlan()), make_arm(block, plan)
    for inputs in recorded[1:]:
        hidden = inputs[0]
        expected, _ = call(dense, inputs)
        found, _ = call(pruned, inputs, *extras(plan, permutations(hidden), hidden))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ROTATED)
@pytest.mark.parametrize("restored", [False, True])
def test_the_permutation_sees_an_ungathered_position_table(blocks, name, restored, without_table_gather):
    block, recorded = blocks(name)
    plan = RowPlan(GatherAt.BLOCK_INPUT, restored=restored)
    dense, pruned = make_arm(block, RowPlan()), make_arm(block, plan)
    inputs = recorded[-1]
    hidden = inputs[0]
    expected, _ = call(dense, inputs)
    # All tokens in their order do not see it ...
    keep = torch.arange(hidden.shape[1]).expand(len(hidden), -1).contiguous()
    assert torch.equal(call(pruned, inputs, *extras(plan, keep, hidden))[0], expected)
    # ... another order does, and so does the check that runs in production.
    found, _ = call(pruned, inputs, *extras(plan, permutations(hidden), hidden))
    assert (found - expected).abs().max() > 1e-2
    check = PermutationCheck("once")
    update = torch.ones_like(hidden) if restored else None
    found = check.deviation(dense, pruned, inputs, update, dense.begin(inputs))
    assert found > 10 * check.tolerance(inputs[0], pruned)


@pytest.mark.parametrize("name", ROTATED)
def test_a_wrong_rewrite_runs_dense_and_is_reported(name, without_table_gather, monkeypatch):
    model = traced(name)
    monkeypatch.setattr(model, "programs", {})
    outcome = model({**OPEN, "keep": {-2: 0.5, -1: 0.5}})
    assert identical(outcome.logits, eager(name).logits)
    fallbacks = outcome.controller.ledger.fallbacks
    assert {fallback.reason for fallback in fallbacks} == {Reason.VERIFICATION}
    assert {fallback.layer for fallback in fallbacks} == {1, 2, 3}
    with pytest.raises(GraphError, match=r"VERIFICATION.*deviation"):
        model({**OPEN, "keep": {-1: 0.5}, "strict": True})


def test_the_check_is_made_once_or_always_or_never(blocks):
    block, recorded = blocks("infinity")
    dense, pruned = make_arm(block, RowPlan()), make_arm(block, RowPlan(GatherAt.BLOCK_INPUT))
    inputs = recorded[-1]
    broken = tuple(x * float("nan") if x is inputs[0] else x for x in inputs)
    once, always = PermutationCheck("once"), PermutationCheck("always")
    assert (
        once.deviation(dense, pruned, inputs, None, dense.begin(inputs))
        == once.deviation(dense, pruned, broken, None, dense.begin(inputs))
        < 1e-5
    )
    assert always.deviation(dense, pruned, inputs, None, dense.begin(inputs)) < 1e-5
    assert not always.deviation(dense, pruned, broken, None, dense.begin(inputs)) < 1e-5
    assert PermutationCheck("never").deviation(dense, pruned, inputs, None, dense.begin(inputs)) is None


def test_the_check_leaves_the_caches_alone(blocks):
    block, recorded = blocks("infinity")
    dense, pruned = make_arm(block, RowPlan()), make_arm(block, RowPlan(GatherAt.BLOCK_INPUT))
    inputs = recorded[-1]
    before = [x.clone() for x in inputs if isinstance(x, Tensor)]
    PermutationCheck("once").deviation(dense, pruned, inputs, None, dense.begin(inputs))
    assert identical(before, [x for x in inputs if isinstance(x, Tensor)])
