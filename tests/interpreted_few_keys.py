"""Attention to few keys in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted_few_keys`.

Prints one JSON object: per case the largest error against float64, and whether what is not a number stays
with the queries that see it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toprovar_fx.ops.triton_few_keys import Tiles, launch, launch_parts

Case = tuple[Tensor, Tensor, Tensor, float, Tensor | None]


def operands(
    queries: int, keys: int, heads: int = 2, key_heads: int = 2, width: int = 16, norm: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as a projection leaves them; keys and values in front of what is not a number."""
    q = norm * torch.randn(2, queries, heads, width).transpose(1, 2)
    cache = torch.full((2, 2, key_heads, keys + 5, width), math.nan)
    cache[:, :, :, :keys] = torch.randn(2, 2, key_heads, keys, width)
    return tuple(x.half() for x in (q, cache[0, :, :, :keys], cache[1, :, :, :keys]))  # type: ignore[return-value]


def padding(lengths: list[int], keys: int) -> Tensor:
    """A number per key, 0 or -inf behind the lengths."""
    padded = torch.arange(keys) >= torch.tensor(lengths)[:, None]
    return torch.zeros(padded.shape).masked_fill(padded, -math.inf)[:, None, None].half()


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    keys, values = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = scale * q.double() @ keys.mT
    logits = logits if mask is None else logits + mask.double()
    # Like stock attention, zeros where no key counts.
    return logits.softmax(-1).masked_fill(logits.isneginf().all(-1, keepdim=True), 0) @ values


def cases() -> Iterator[tuple[str, Case, Tiles | None]]:
    small = Tiles(16, 16, 2)
    for queries, keys in ((1, 1), (3, 5), (16, 16), (17, 33), (65, 70), (70, 20)):
        yield f"{queries} to {keys}", (*operands(queries, keys), 0.3, None), None
        yield f"{queries} to {keys}, small tiles", (*operands(queries, keys), 0.3, None), small
    yield "shared keys", (*operands(5, 40, heads=6, key_heads=2), 0.3, None), small
    yield "sharp", (*operands(5, 40, norm=100.0), 1.0, None), small
    yield "uniform", (*operands(5, 40, norm=0.0), 1.0, None), small
    yield "scale below 0", (*operands(5, 40), -0.5, None), small
    yield "padded", (*operands(5, 40), 0.3, padding([7, 33], 40)), small
    yield "one key counts", (*operands(5, 40), 0.3, padding([1, 40], 40)), small
    yield "one mask for all", (*operands(5, 40), 0.3, padding([20], 40)), small
    first = padding([40, 40], 40)
    first[0, ..., :18] = -math.inf
    yield "the first tile is masked", (*operands(5, 40), 0.3, first), small
    yield "biases", (*operands(5, 40), 0.3, torch.randn(2, 1, 1, 40).half()), small
    yield "a mask in full precision", (*operands(5, 40), 0.3, torch.randn(2, 1, 1, 40)), small
    yield "no key counts", (*operands(5, 40), 0.3, padding([0, 40], 40)), small
    strange = operands(5, 40)
    strange[1][1, 0, 11] = math.nan
    yield "not a number", (*strange, 0.3, None), small


def run_parts(parts: int, biased: bool) -> dict[str, Any]:
    """Queries of which parts are to be summed, rounded as a projection would round them."""
    q, k, v = operands(21, 40)
    sums = torch.randn(parts, 2, 21, 2, 16).transpose(2, 3)
    bias = torch.randn(32).half() if biased else None
    mask = padding([7, 33], 40)
    whole = sums.sum(0) + (0 if bias is None else bias.float().view(2, 1, 16))
    found = launch_parts(sums, bias, k, v, 0.3, mask)
    expected = exact(whole.half(), k, v, 0.3, mask)
    laid_out = found.shape == q.shape and found.transpose(1, 2).is_contiguous()
    return {"error": float((found.double() - expected).abs().max()), "as it should": laid_out}


def run(case: Case, tiles: Tiles | None) -> dict[str, Any]:
    found, expected = launch(*case, tiles=tiles), exact(*case)
    lost = bool((found.isnan() != expected.isnan()).any())
    laid_out = found.transpose(1, 2).is_contiguous()
    return {
        "error": float((found.double() - expected).nan_to_num().abs().max()),
        "as it should": laid_out and not lost,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    results = {name: run(case, tiles) for name, case, tiles in cases()}
    results |= {f"{parts} parts": run_parts(parts, parts > 2) for parts in (2, 4)}
    print(json.dumps(results))
