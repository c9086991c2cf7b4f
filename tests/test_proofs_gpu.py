"""The permutation, oracle and lowering proofs on CUDA, in the dtypes that users run."""

from __future__ import annotations

import pytest
import torch

from .models.fixtures import NAMES
from .models.subjects import BUILDERS, MANY_GRAPHS, OPEN, Outcome, Subject, generate
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


def compiled(subject: Subject, **options: object) -> Outcome:
    """A generation; strict, so the permutation check of every pruned graph has passed."""
    torch.compiler.reset()
    settings = {**OPEN, "strict": True, "verify": "always", **options}
    forward = torch.compile(subject.model, backend="toprovar", options=settings)
    with MANY_GRAPHS:
        return generate(subject, forward, images=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pruned_kv", ["drop", "keep"])
def test_a_pruned_generation_is_the_oracles(device, dtype, name, pruned_kv):
    subject = BUILDERS[name](device=device, dtype=dtype)
    outcome = compiled(subject, keep=KEEP, pruned_kv=pruned_kv, lowering="eager")
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
