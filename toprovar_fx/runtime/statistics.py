"""The functions of entropy maps by which is decided: each is dozens of small kernels, recorded as one."""

from __future__ import annotations

from dataclasses import dataclass

from ..criteria.weighing import weigh_layers
from .cuda_graphs import GraphMemory
from .depth import rho_of_maps
from .recorded_function import RecordedFunction
from .scope import scope_of_maps


@dataclass(frozen=True)
class Statistics:
    """One recording per function and shape, for all generations of a compiled step.

    Attributes:
        scope: `scope_of_maps`.
        rho: `rho_of_maps`.
        weigh: `weigh_layers`.
    """

    scope: RecordedFunction
    rho: RecordedFunction
    weigh: RecordedFunction

    @classmethod
    def recorded(cls, memory: GraphMemory | None) -> Statistics:
        """With the memory of a step's own recordings; without it they are called as they are."""
        return cls(*(RecordedFunction(each, memory) for each in (scope_of_maps, rho_of_maps, weigh_layers)))
