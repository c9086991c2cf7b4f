"""Takes rows out of the caches between two scales, as the cache policy says.

The rows that stay move to the front, in place, and the layer's offset falls by those that went: it writes
behind the shorter cache and attends to fewer keys in the graphs that are there already. Keys were rotated
before they were cached, so a row may lie anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis.cache_layout import CacheLayout
from ..cache_policies.policy import WATCHED, LayerCache
from .ledger import Ledger
from .short_caches import ShortCaches

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule


@dataclass(frozen=True)
class _Seen:
    """A layer that ran: its caches, the queries that are looked at, and its place in the cache."""

    key: Tensor
    value: Tensor
    layout: CacheLayout
    queries: Tensor
    start: int
    traced_end: int


class Compaction:
    """The caches of one model in one generation.

    Args:
        options: the settings.
        schedule: the scales.
        caches: how many rows each layer lacks.
        ledger: gets the rows of every layer after every scale.
    """

    def __init__(self, options: Options, schedule: Schedule, caches: ShortCaches, ledger: Ledger) -> None:
        self.policy = options.extensions.cache_policy(options, schedule)
        self._schedule, self._caches, self._ledger = schedule, caches, ledger
        self._seen: dict[int, _Seen] = {}
        self._watched: dict[tuple[int, int], Tensor] = {}

    def observe(
        self,
        layer: int,
        scale: int,
        queries: Tensor,
        layout: CacheLayout,
        inputs: tuple[Any, ...],
        begin: int,
    ) -> None:
        """Look at the attention of a layer, before its missing rows are accounted for.

        Args:
            layer: 0-based.
            scale: the one that runs.
            queries: [R, H, L or K, E].
            layout: which of `inputs` are the caches.
            inputs: of the block.
            begin: first cache row of the scale as traced.
        """
        chosen = self._watched_of(scale, queries.shape[2], queries.device)
        self._seen[layer] = _Seen(
            key=inputs[layout.key],
            value=inputs[layout.value],
            layout=layout,
            queries=queries[:, :, chosen],
            start=begin - self._caches.dropped.get(layer, 0),
            traced_end=begin + inputs[0].shape[1],
        )

    def end_scale(self, scale: int) -> None:
        """Compact the caches of the layers that ran; after the last scale nobody reads them."""
        seen, self._seen = self._seen, {}
        if scale >= len(self._schedule) - 1 or not seen:
            return
        # What was made in inference mode can be written to in inference mode alone.
        inference = any(one.key.is_inference() or one.value.is_inference() for one in seen.values())
        with torch.inference_mode(inference), torch.no_grad():
            shown = [self._shown(layer, one, scale) for layer, one in sorted(seen.items())]
            keeps = self.policy.select(scale, shown)
            for cache in shown:
                keep = keeps.get(cache.layer)
                stay = cache.rows
                if keep is not None:
                    stay = keep.shape[-1]
                    one = seen[cache.layer]
                    for tensor in (one.key, one.value):
                        _move(_heads_first(tensor, one.layout), keep)
                    if stay < cache.rows:
                        self._caches.drop(cache.layer, cache.rows - stay, anywhere=True)
                self._ledger.cached_rows[scale, cache.layer] = cache.rows, stay

    def release(self) -> None:
        """Let go of the tensors."""
        self._seen.clear()
        self._watched.clear()

    def _watched_of(self, scale: int, count: int, device: torch.device) -> Tensor:
        """`_watched` on the device; layers of one K share it, for a copy to the device may wait."""
        if (scale, count) not in self._watched:
            self._watched[scale, count] = _watched(self._schedule.sides[scale], count).to(device)
        return self._watched[scale, count]

    def _shown(self, layer: int, one: _Seen, scale: int) -> LayerCache:
        rows = one.traced_end - self._caches.dropped.get(layer, 0)
        keys = _heads_first(one.key, one.layout)[:, :, :rows]
        watched = one.start + self._watched_of(scale, rows - one.start, keys.device)
        return LayerCache(layer, one.start, rows, keys, one.queries, watched, one.layout.scale)


def _heads_first(cache: Tensor, layout: CacheLayout) -> Tensor:
    """The cache as [R, Hk, slots, E]."""
    return cache if layout.axis == 2 else cache.transpose(1, 2)


def _move(cache: Tensor, keep: Tensor) -> None:
    """Move the rows `keep` [R, Hk, M] of a cache [R, Hk, slots, E] to the front."""
    rows = cache.gather(2, keep[..., None].expand(-1, -1, -1, cache.shape[3]))
    cache[:, :, : keep.shape[2]] = rows


def _watched(side: tuple[int, int], count: int) -> Tensor:
    """Up to `WATCHED` of `count` rows: centres of a grid on a whole map, else at equal distances."""
    height, width = side
    cells = int(WATCHED**0.5)
    if count == height * width and min(side) >= cells:
        y = (torch.arange(cells) * 2 + 1) * height // (2 * cells)
        x = (torch.arange(cells) * 2 + 1) * width // (2 * cells)
        return (y[:, None] * width + x).flatten()
    few = min(WATCHED, count)
    return (torch.arange(few) * 2 + 1) * count // (2 * few)
