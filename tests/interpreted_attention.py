"""Runs the plain kernel in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted_attention`.

A process of its own, because the interpreter is chosen when a kernel is defined. Prints one JSON object: per
case the largest errors of output and entropies against float64, and the entropies themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.ops.triton_launch import Tiles, launch

from .float64_attention import attended

SMALL = Tiles(16, 16, 4, 2)
Case = tuple[Tensor, Tensor, Tensor, float, int, Tiles]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def case(
    heads: int = 2, key_heads: int = 2, queries: int = 20, keys: int = 37, width: int = 32, **other: object
) -> Case:
    settings = {
        "sharpness": 5.0,
        "scale": 1.0,
        "first_key": 0,
        "tiles": SMALL,
        "dtype": torch.float32,
        **other,
    }
    q = settings["sharpness"] * unit(2, heads, queries, width)  # type: ignore[operator]
    k, v = unit(2, key_heads, keys, width), torch.randn(2, key_heads, keys, width)
    q, k, v = (x.to(settings["dtype"]) for x in (q, k, v))  # type: ignore[call-overload]
    return q, k, v, settings["scale"], settings["first_key"], settings["tiles"]  # type: ignore[return-value]


def cases() -> Iterator[tuple[str, Case]]:
    yield "ragged", case()
    yield "whole tiles", case(queries=16, keys=32)
    yield "float16", case(dtype=torch.float16)
    for sharpness in (0.0, 30.0, 100.0):
        yield f"sharpness {sharpness:g}", case(sharpness=sharpness)
    for width in (16, 80, 256):
        yield f"width {width}", case(width=width, queries=5, keys=20)
    yield "one key", case(keys=1)
    yield "one query", case(queries=1)
    yield "grouped heads", case(heads=4, key_heads=2)
    for first_key in (1, 16, 36):
        yield f"keys from {first_key}", case(first_key=first_key)
    yield "negative scale", case(scale=-1.5)
    yield "zero scale", case(scale=0.0)
    yield "huge logits", case(sharpness=1e15, scale=1e10)
    yield "tensor maps", case(tiles=Tiles(16, 32, 4, 2, True))
    yield "tensor maps, keys from 20", case(first_key=20, width=48, tiles=Tiles(16, 16, 4, 2, True))
    q, k, v, *rest = case(queries=9)
    yield "queries as keys", (100 * k, k, v, *rest)  # type: ignore[misc]
    strided = torch.randn(2, 30, 2, 64)[..., ::2].transpose(1, 2)
    cache = torch.full((2, 2, 50, 32), math.nan)
    cache[:, :, :37] = k
    yield "views", (strided, cache[:, :, :37], v.transpose(2, 3).contiguous().transpose(2, 3), *rest)  # type: ignore[misc]
    k = k.clone()
    k[1, :, 3] = math.nan
    yield "not a number", (q, k, v, *rest)  # type: ignore[misc]


def run(q: Tensor, k: Tensor, v: Tensor, scale: float, first_key: int, tiles: Tiles) -> dict[str, object]:
    expected, nats = attended(q, k, v, scale, first_key)
    out, entropy = launch(q, k, v, scale, False, first_key, tiles=tiles)
    again, mean = launch(q, k, v, scale, True, first_key, tiles=tiles)
    plain, _ = launch(q, k, v, scale, False, tiles=tiles, with_entropy=False)
    return {
        "out": float((out.double() - expected).abs().max()),
        "entropy": float((entropy.double() - nats).abs().max()),
        "mean": float((mean.double() - nats.mean(1)).abs().max()),
        "alike": float((again - out).abs().max() + (plain - out).abs().max()),
        "least": float(entropy.min()),
        "largest": float(entropy.max()),
        "row of each": [
            float(entropy[0, 0, 0]),
            float(entropy[1, 0, 0]),
            float(mean[0, 0]),
            float(mean[1, 0]),
        ],
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({name: run(*arguments) for name, arguments in cases()}))
