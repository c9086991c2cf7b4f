"""The permutation, oracle and lowering proofs on CUDA, in the dtypes that users run."""

from __future__ import annotations

import pytest
import torch

from .models.fixtures import NAMES
from .models.subjects import BUILDERS, MANY_GRAPHS, OPEN, SQUARE, Outcome, Subject, generate
from .oracles import replay

pytestmark = pytest.mark.gpu

DEVICES = ["cuda"]
DTYPES = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.3, 2: 0.6}}


def deviation(found: Outcome, expected: list[torch.Tensor]) -> float:
    """Largest deviation relative to the largest logit."""
    assert len(found.logits) == len(expected)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(found.logits, expected, strict=True)
    )


def compiled(subject: Subject, dynamic: bool | None = None, **options: object) -> Outcome:
    """A generation; strict, so the permutation check of every pruned graph has passed."""
    torch.compiler.reset()
    settings = {**OPEN, "strict": True, "verify": "always", **options}
    forward = torch.compile(subject.model, backend="toprovar", options=settings, dynamic=dynamic)
    with MANY_GRAPHS:
        return generate(subject, forward, images=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pruned_kv", ["drop", "keep"])
def test_a_pruned_generation_is_the_oracles(device, dtype, name, pruned_kv):
    subject = BUILDERS[name](device=device, dtype=dtype)
    options = {"keep": KEEP, "pruned_kv": pruned_kv, "entropy_source": "dense_layer"}
    outcome = compiled(subject, **options, lowering="eager")
    assert outcome.arms(4) == ["tapped", "pruned", "skipped", "pruned"]
    where = "input" if pruned_kv == "drop" else "query"
    trace = replay(subject, outcome.keeps, images=2, where=where, entropies=False)
    assert deviation(outcome, trace.logits) < DTYPES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{"preset": "lossless"}, {"keep": KEEP}, {"entropy_source": "same_layer"}]
)
def test_inductor_computes_what_the_oracle_computes(device, dtype, options):
    subject = BUILDERS["infinity"](device=device, dtype=dtype)
    outcome = compiled(subject, **options)
    where = "attention" if "entropy_source" in options else "input"
    trace = replay(subject, outcome.keeps, images=2, where=where, entropies=False)
    assert deviation(outcome, trace.logits) < DTYPES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lowering", ["eager", "inductor"])
@pytest.mark.parametrize("unit", ["block", "auto"])
def test_token_counts_that_are_constants_prune_the_same(device, lowering, unit):
    """`torch.compile(dynamic=False)`: every scale is a graph of its own."""
    subject = BUILDERS["infinity"](device=device)
    outcome = compiled(subject, dynamic=False, keep=KEEP, lowering=lowering, unit=unit)
    assert outcome.counts(4)[2] == 0 and outcome.counts(5)[1] < SQUARE.tokens[5]
    trace = replay(subject, outcome.keeps, images=2, where="input", entropies=False)
    assert deviation(outcome, trace.logits) < DTYPES[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lowering", ["eager", "inductor"])
@pytest.mark.parametrize("name", ["infinity", "prenorm-fused-rope"])
def test_graphs_that_decide_themselves_decide_as_the_host_does(device, lowering, name):
    """`gate="graph"`: branches of `torch.cond` and predicates that only the device knows."""
    deciding = {"buckets": (0.5,), "min_scale": 2, "alpha_min": 0.5, "tau": 0.3, "layer_skip_below": 0.35}
    # Both would measure what they check, and a graph that decides keeps no answer for the host.
    given = {**deciding, "entropy_source": "dense_layer", "lowering": lowering, "verify": "never"}
    host = compiled(BUILDERS[name](device=device), unit="block", **given)
    graph = compiled(BUILDERS[name](device=device), gate="graph", **given)
    assert graph.controller.branching is not None
    left, right = host.controller.ledger, graph.controller.ledger
    assert {run.arm for run in right.runs} >= {"dense", "pruned"}
    assert [(run.scale, run.layer, run.kept) for run in left.runs] == [
        (run.scale, run.layer, run.kept) for run in right.runs
    ]
    assert left.depth == right.depth and left.rho == pytest.approx(right.rho, abs=0.02)
    assert deviation(graph, host.logits) < DTYPES[torch.float32]
