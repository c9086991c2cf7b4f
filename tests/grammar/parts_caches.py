"""Key/value caches as models write them: preallocated and written in four ways, grown, or absent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import CaseSpec


@dataclass
class Cache:
    """Keys and values per layer, in the layer's layout; None where a cache starts empty or does not exist."""

    keys: list[Tensor | None]
    values: list[Tensor | None]


def empty_cache(case: CaseSpec) -> Cache:
    """What a generation starts with: one slot more than it needs where the cache is preallocated."""
    kept: list[list[Tensor | None]] = []
    for _ in range(2):
        entries: list[Tensor | None] = []
        for block in case.blocks:
            heads = case.heads if block.gqa == "none" else case.heads // 2
            slots = case.scales.ends[-1] + 1
            middle = (slots, heads) if block.layout == "tokens_first" else (heads, slots)
            wanted = block.cache not in ("cat", "none")
            entries.append(torch.zeros(case.batch, *middle, case.head_width) if wanted else None)
        kept.append(entries)
    return Cache(*kept)


def remember(
    kind: str,
    tokens_first: bool,
    entries: list[Tensor | None],
    layer: int,
    rows: Tensor,
    start: int,
    end: int,
) -> Tensor:
    """Put the scale's rows into `entries[layer]` and return all rows so far."""
    axis = 1 if tokens_first else 2
    if kind == "none":
        return rows
    if kind == "cat":
        known = entries[layer]
        entries[layer] = rows if known is None else torch.cat((known, rows), dim=axis)
        return entries[layer]
    held = entries[layer]
    if kind == "narrow":
        held.narrow(axis, start, rows.shape[axis]).copy_(rows)
        return held.narrow(axis, 0, end)
    if kind == "index_copy":
        held.index_copy_(axis, torch.arange(start, end, device=rows.device), rows)
    elif tokens_first:
        where = slice(start, end) if kind == "slice" else torch.arange(start, end, device=rows.device)
        held[:, where] = rows
    else:
        where = slice(start, end) if kind == "slice" else torch.arange(start, end, device=rows.device)
        held[:, :, where] = rows
    return held[:, :end] if tokens_first else held[:, :, :end]
