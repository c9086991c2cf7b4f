"""Cache policies: rows leave the cache between scales, and what is computed is what a plain model would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from toprovar_fx.cache_policies.policy import CachePolicy, LayerCache
from toprovar_fx.cache_policies.registry import CACHE_POLICIES
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options

from .cache_oracle import replay_compacted
from .models.fixtures import NAMES, eager, traced
from .models.subjects import OPEN, SQUARE, Outcome, identical, worst
from .test_proofs_oracle import MANY

TOLERANCE = 2e-5
DENSE = {"preset": "lossless"}


class Shuffled(CachePolicy):
    """All rows stay, in a random order in every head."""

    name = "shuffled"

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        source = torch.Generator().manual_seed(scale)
        return {one.layer: torch.rand(*one.heads, one.rows, generator=source).argsort(-1) for one in caches}


class Drawn(CachePolicy):
    """A random part of the rows stays, another in every head of every row, another count in every layer."""

    name = "drawn"
    chosen: ClassVar[dict[tuple[int, int], Tensor]] = {}

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        source = torch.Generator().manual_seed(scale)
        found = {}
        for one in caches:
            count = max(1, one.rows * (3 + one.layer) // 8)
            order = torch.rand(*one.heads, one.rows, generator=source).argsort(-1)
            found[one.layer] = self.chosen[scale, one.layer] = order[..., :count].sort(-1).values
        return found


@pytest.fixture(params=[Shuffled, Drawn])
def own(request) -> Iterator[str]:
    Drawn.chosen.clear()
    CACHE_POLICIES.add(request.param.name, request.param)
    yield request.param.name
    CACHE_POLICIES.remove(request.param.name)


def rows_after(outcome: Outcome) -> dict[tuple[int, int], int]:
    return {place: stay for place, (_, stay) in outcome.controller.ledger.cached_rows.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", ["hack", "scalekv"])
def test_a_whole_budget_is_the_dense_model_bit_for_bit(name, policy):
    outcome = traced(name)({**DENSE, "cache_policy": policy, "cache_budget": 1.0})
    assert identical(outcome.logits, eager(name).logits)
    ledger = outcome.controller.ledger
    assert not ledger.fallbacks
    assert ledger.cached_rows == {
        (scale, layer): (SQUARE.ends[scale],) * 2 for scale in range(1, 5) for layer in range(4)
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("own", [Shuffled], indirect=True)
def test_the_order_of_cached_rows_does_not_matter(name, own):
    outcome = traced(name)({**DENSE, "cache_policy": own})
    assert worst(outcome.logits, eager(name).logits) < TOLERANCE
    assert not identical(outcome.logits, eager(name).logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("own", [Drawn], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        DENSE,
        {**OPEN, "keep": MANY, "score": "random", "pruned_kv": "drop"},
        {**OPEN, "keep": MANY, "score": "random", "pruned_kv": "keep", "restore": "residual"},
    ],
)
def test_a_subset_equals_the_plain_reference(name, options, own):
    outcome = traced(name)({**options, "cache_policy": own}, images=2)
    settings = outcome.controller.options
    logits, cached = replay_compacted(
        traced(name).subject,
        Drawn.chosen,
        outcome.keeps,
        images=2,
        where="query" if settings.pruned_kv == "keep" else "input",
        restore=settings.restore,
    )
    assert worst(outcome.logits, logits) < TOLERANCE
    assert rows_after(outcome) == {place: cached[place] for place in rows_after(outcome)}
    assert worst(outcome.logits, eager(name, 2).logits) > 1e-3


def test_errors_name_what_was_expected():
    with pytest.raises(OptionError, match=r"cache_policy='scalkv': .*nearest valid: 'scalekv'"):
        Options(cache_policy="scalkv")
    with pytest.raises(OptionError, match=r"cache_budget=1.5: expected a number from 0 to 1"):
        Options(cache_policy="hack", cache_budget=1.5)
    with pytest.raises(OptionError, match=r"cache_budget=0.5: expected a cache_policy"):
        Options(cache_budget=0.5)
