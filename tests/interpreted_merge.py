"""Joins ranges of keys in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted_merge`.

The sums of the ranges come from PyTorch in float64. Prints one JSON object: per case the largest error of the
output against float64, whether what is not a number stays in its row, and whether whole tiles are left alone.
"""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

from toprovar_fx.ops.attention_plan import QUERIES_PER_TILE, WIDTH, tiles_of
from toprovar_fx.ops.triton_merge import empty_parts, merge

BATCH, HEADS, KEYS = 2, 3, 37
UNTOUCHED = 7.0


def places(queries: int) -> list[tuple[int, int]]:
    """(head of all rows, first query) of each tile, in order: full ones head by head, then the others."""
    every, full = BATCH * HEADS, queries // QUERIES_PER_TILE
    found = [(head, tile * QUERIES_PER_TILE) for head in range(every) for tile in range(full)]
    if queries % QUERIES_PER_TILE:
        found += [(head, full * QUERIES_PER_TILE) for head in range(every)]
    return found


def sums(s: Tensor, v: Tensor, parts: Tensor, whole: int, edges: list[int]) -> None:
    """Fill `parts` from logits in base 2 `[B H, Lq, Lk]` and values `[B H, Lk, D]` as the kernel does."""
    dealt = places(s.shape[1])[whole:]
    shape = len(edges) - 1, len(dealt), QUERIES_PER_TILE
    of_values = math.prod(shape) * WIDTH
    values = parts[:of_values].view(*shape, WIDTH)
    peaks, masses = parts[of_values:].view(2, *shape)
    parts.fill_(math.nan)
    for at, own in enumerate(map(slice, edges[:-1], edges[1:])):
        for tile, (head, first) in enumerate(dealt):
            logits = s[head, first : first + QUERIES_PER_TILE, own]
            rows = len(logits)
            peak = logits.amax(-1)
            p = torch.exp2(logits - peak[:, None])
            peaks[at, tile, :rows], masses[at, tile, :rows] = peak, p.sum(-1)
            values[at, tile, :rows] = p @ v[head, own]


def run(
    queries: int, whole: int, edges: list[int], sharpness: float, dtype: torch.dtype, nan: bool = False
) -> list[float]:
    every = BATCH * HEADS
    s = sharpness * torch.randn(every, queries, KEYS, dtype=torch.float64)
    v = torch.randn(every, KEYS, WIDTH, dtype=torch.float64)
    if nan:
        s[-1, -1, 20] = math.nan
    dealt = tiles_of(queries, every) - whole
    parts = empty_parts(torch.empty(0), dealt * (len(edges) - 1))
    sums(s, v, parts, whole, edges)
    out = torch.full((BATCH, queries, HEADS, WIDTH), UNTOUCHED, dtype=dtype).transpose(1, 2)
    merge(parts, out, whole, len(edges) - 1)
    expected = (s * math.log(2)).softmax(-1) @ v
    for head, first in places(queries)[:whole]:
        expected[head, first : first + QUERIES_PER_TILE] = UNTOUCHED
    expected = expected.view(BATCH, HEADS, queries, WIDTH)
    lost = bool((out.isnan() != expected.isnan()).any())
    return [float((out.double() - expected).nan_to_num().abs().max()), float(lost)]


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = {
        "few queries": run(5, 0, [0, 16, 32, 37], 5.0, torch.float32),
        "one key": run(5, 0, [0, 1, 36, 37], 5.0, torch.float32),
        "one range": run(3, 0, [0, 37], 5.0, torch.float32),
        "last tiles": run(130, 8, [0, 16, 37], 5.0, torch.float32),
        "full tiles": run(128, 4, [0, 20, 37], 5.0, torch.float32),
        "eight ranges, half": run(9, 3, [0, 5, 10, 15, 20, 25, 30, 35, 37], 1.0, torch.float16),
        "sharp": run(5, 0, [0, 16, 37], 5000.0, torch.float32),
        "uniform": run(5, 0, [0, 16, 37], 0.0, torch.float32),
        "not a number": run(5, 0, [0, 16, 37], 5.0, torch.float32, nan=True),
    }
    print(json.dumps(cases))
