"""Recorded steps write the caches that the caller passes, however these lie in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from .models import families, family_caches
from .models.families import Family
from .models.subjects import generate, identical, worst

OPTIONS = {"lowering": "eager", "unit": "step"}
KEEP = {3: {1: 0.5}, 4: {1: 0.25}, 5: {1: 0.3}}
PRUNED = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0, "keep": KEEP}


def tensors(cache: object) -> Iterator[Tensor]:
    if isinstance(cache, Tensor):
        yield cache
    elif isinstance(cache, (list, tuple)):
        for each in cache:
            yield from tensors(each)


class OneAllocation(family_caches.Sliced):
    """Keys and values of all layers are views of one tensor that the caller made."""

    def new(self, like: Tensor, rows: int, tokens: int) -> object:
        each = list(tensors(super().new(like, rows, tokens)))
        whole = iter(torch.stack(each).unbind())
        return [[next(whole), next(whole)] for _ in range(len(each) // 2)]


@pytest.mark.parametrize("kind", [family_caches.Sliced, family_caches.Stacked, OneAllocation])
def test_what_is_replayed_is_in_the_callers_caches(recorder, kind):
    subject = Family(families.Layer, families.Absolute(), kind())
    options = {"preset": "lossless", **OPTIONS}
    forward = torch.compile(subject.model, backend="toprovar", options=options)
    expected = generate(subject, subject.model)
    for _ in range(2):
        found = generate(subject, forward)
        assert identical(found.logits, expected.logits)
        own, theirs = (list(tensors(outcome.state.cache.rows)) for outcome in (found, expected))
        assert len(own) == len(theirs) > 0
        assert all(map(torch.equal, own, theirs))
    assert recorder.replays == 2 * len(found.logits)


@pytest.mark.parametrize("kind", [family_caches.Stacked, OneAllocation])
@pytest.mark.parametrize("unit", ["block", "step"])
def test_pruned_layers_whose_caches_share_an_allocation(recorder, kind, unit):
    options = {**PRUNED, **OPTIONS, "unit": unit}

    def outcome(cache: object) -> list[Tensor]:
        subject = Family(families.Layer, families.Absolute(), cache)
        found = generate(subject, torch.compile(subject.model, backend="toprovar", options=options))
        assert not found.controller.ledger.fallbacks
        assert [run.arm for run in found.controller.ledger.runs].count("pruned") == 3
        return found.logits

    apart = outcome(family_caches.Sliced())
    torch.compiler.reset()
    assert worst(outcome(kind()), apart) == 0.0
