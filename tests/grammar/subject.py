"""A drawn model as a subject of the proofs, with the inputs of its generations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toprovar_fx.schedules import Schedule

from ..models.subjects import State, Subject
from .model import DrawnModel
from .parts_caches import empty_cache
from .spec import CaseSpec

CONTEXT_LENGTH = 5


@dataclass
class Inputs:
    """What a generation is given, a function of the case: condition [R, C], context, mask, hidden states."""

    case: CaseSpec

    def __post_init__(self) -> None:
        rows, width = self.case.batch, self.case.width
        source = torch.Generator().manual_seed(self.case.seed)
        self.condition = torch.randn(rows, width, generator=source)
        self.context = torch.randn(rows, CONTEXT_LENGTH, width, generator=source)
        self.mask = torch.rand(rows, 1, 1, CONTEXT_LENGTH, generator=source) < 0.7
        self.mask[..., 0] = True
        self._hidden = [
            torch.randn(rows, tokens, width, generator=source) for tokens in self.case.scales.tokens
        ]

    def hidden(self, scale: int) -> Tensor:
        """Input of a scale, [R, L, C]; a fresh copy, since some models write to it."""
        return self._hidden[scale].clone()


class DrawnSubject(Subject):
    """The model of a case, its weights a function of the case's seed."""

    def __init__(self, case: CaseSpec) -> None:
        self.case, self.name = case, "drawn"
        self.width, self.layers = case.width, len(case.blocks)
        torch.manual_seed(case.seed)
        self.model = DrawnModel(case).eval()
        self.inputs = Inputs(case)

    def state(self, images: int, schedule: Schedule) -> State:
        # Models with dropout draw from the global generator: every generation begins with the same state.
        torch.manual_seed(1)
        return State(empty_cache(self.case))

    def hidden(self, images: int, scale: int, schedule: Schedule, seed: int = 1) -> Tensor:
        return self.inputs.hidden(scale)

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        given = self.inputs
        return hidden, given.condition, given.context, given.mask, state.cache, end
