"""Generations whose token counts are constants to Dynamo: one graph per scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .models.subjects import MANY_GRAPHS, Outcome, Subject, generate

STATIC = {"dynamic": False}


def pruned_at(outcome: Outcome, scale: int) -> bool:
    return {run.arm for run in outcome.controller.ledger.runs if run.scale == scale} >= {"pruned"}


def run_static(
    subject: Subject,
    limit: int = 256,
    dynamic: bool | None = False,
    compiling: Mapping[str, Any] | None = None,
    **options: object,
) -> Outcome:
    torch.compiler.reset()
    given = {"lowering": "eager", "score": "random", "protected_layers_first": 0, "protected_layers_last": 0}
    given |= {"keep": {3: 0.5, 4: 0.5, 5: 0.25}, **options}
    more = {"dynamic": dynamic, **(compiling or {})}
    forward = torch.compile(subject.model, backend="toprovar", options=given, **more)
    with MANY_GRAPHS, torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=False):
        return generate(subject, forward)
