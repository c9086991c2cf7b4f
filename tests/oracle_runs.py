"""Generations of the backend beside the oracle's replay of what they kept."""

from __future__ import annotations

from torch import Tensor

from toprovar_fx.criteria import (
    expand_cfg_rows,
    join_cfg_rows,
    ranking_score,
    select_tokens,
)

from .models.fixtures import traced
from .models.subjects import OPEN, Outcome, worst
from .oracles import Trace, Where, replay

TOLERANCE = 2e-5


def compare(
    name: str, options: dict[str, object], images: int = 1, where: Where | None = None
) -> tuple[Outcome, Trace]:
    """Run the backend, replay its keep sets in the oracle, and compare the whole generation."""
    outcome = traced(name)({**OPEN, **options}, images=images)
    controller = outcome.controller
    settings = controller.options
    if where is None:
        where = "query" if settings.pruned_kv == "keep" else "input"
    trace = replay(
        traced(name).subject,
        outcome.keeps,
        images=images,
        where=where,
        restore=settings.restore,
        scales=len(outcome.logits),
    )
    assert worst(outcome.logits, trace.logits) < TOLERANCE
    assert not controller.ledger.fallbacks
    return outcome, trace


def ranked(statistic: Tensor, count: int, rule: str = "shared", keep_low: bool = True) -> Tensor:
    joined = join_cfg_rows(statistic, len(statistic) // 2, rule)
    return expand_cfg_rows(select_tokens(ranking_score(joined, keep_low), count), len(statistic))
