"""Joins ranges of keys in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted_merge`.

The sums of the ranges come from PyTorch in float64. Prints one JSON object: per case the largest error of the
output against float64, and whether what is not a number stays in its row.
"""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

from toprovar_fx.ops.triton_merge import empty_parts, merge

BATCH, HEADS, QUERIES, KEYS = 2, 3, 5, 37


def sums(s: Tensor, v: Tensor, parts: Tensor, width: int, edges: list[int]) -> None:
    """Fill `parts` from logits in base 2 `[B, H, Lq, Lk]` as the attention kernel does."""
    ranges, every = len(edges) - 1, s[..., 0].numel()
    values = parts[: ranges * every * width].view(ranges, *s.shape[:3], width)
    peaks, masses = parts[ranges * every * width :].view(2, ranges, *s.shape[:3])
    for at in range(ranges):
        own = slice(edges[at], edges[at + 1])
        peak = s[..., own].amax(-1, keepdim=True)
        p = torch.exp2(s[..., own] - peak)
        peaks[at], masses[at] = peak[..., 0], p.sum(-1)
        values[at, ..., : v.shape[-1]] = p @ v[:, :, own]


def run(channels: int, edges: list[int], sharpness: float, dtype: torch.dtype, nan: bool) -> list[float]:
    s = sharpness * torch.randn(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    v = torch.randn(BATCH, HEADS, KEYS, channels, dtype=torch.float64)
    if nan:
        s[0, 0, 0, 20] = math.nan
    ranges = len(edges) - 1
    width = 1 << (channels - 1).bit_length()
    like = torch.empty(BATCH, HEADS, QUERIES, channels)
    parts = empty_parts(like, ranges, width)
    sums(s, v, parts, width, edges)
    out = torch.empty(BATCH, QUERIES, HEADS, channels, dtype=dtype).transpose(1, 2)
    merge(parts, out, ranges, width)
    expected = (s * math.log(2)).softmax(-1) @ v
    lost = bool((out.isnan() != expected.isnan()).any())
    return [float((out.double() - expected).nan_to_num().abs().max()), float(lost)]


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = {
        "one range": run(16, [0, 37], 5.0, torch.float32, False),
        "even": run(32, [0, 16, 32, 37], 5.0, torch.float32, False),
        "one key": run(16, [0, 1, 36, 37], 5.0, torch.float32, False),
        "eight ranges, half": run(16, [0, 5, 10, 15, 20, 25, 30, 35, 37], 1.0, torch.float16, False),
        "odd width": run(24, [0, 16, 37], 5.0, torch.float32, False),
        "sharp": run(16, [0, 16, 37], 5000.0, torch.float32, False),
        "uniform": run(16, [0, 16, 37], 0.0, torch.float32, False),
        "not a number": run(16, [0, 16, 37], 5.0, torch.float32, True),
    }
    print(json.dumps(cases))
