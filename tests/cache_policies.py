"""Cache policies that no user would choose, for proofs, and a way to let one act by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from toprovar_fx.cache_policies.policy import CachePolicy, LayerCache
from toprovar_fx.cache_policies.registry import CACHE_POLICIES


class Shuffled(CachePolicy):
    """All rows stay, in a random order in every head."""

    name = "shuffled"

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        source = torch.Generator().manual_seed(scale)
        return {
            one.layer: torch.rand(*one.keys.shape[:2], one.rows, generator=source).argsort(-1)
            for one in caches
        }


class Drawn(CachePolicy):
    """A random part of the rows stays, another in every head of every row, another count in every layer."""

    name = "drawn"
    chosen: ClassVar[dict[tuple[int, int], Tensor]] = {}

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        source = torch.Generator().manual_seed(scale)
        found = {}
        for one in caches:
            count = max(1, one.rows * (3 + one.layer) // 8)
            order = torch.rand(*one.keys.shape[:2], one.rows, generator=source).argsort(-1)
            found[one.layer] = self.chosen[scale, one.layer] = order[..., :count].sort(-1).values
        return found


@contextmanager
def registered(policy: type[CachePolicy]) -> Iterator[str]:
    """The name of a policy, which holds inside."""
    Drawn.chosen.clear()
    CACHE_POLICIES.add(policy.name, policy)
    try:
        yield policy.name
    finally:
        CACHE_POLICIES.remove(policy.name)
