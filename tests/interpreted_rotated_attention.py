"""Rotation and attention in one: `TRITON_INTERPRET=1 python -m tests.interpreted_rotated_attention`.

Prints one JSON object: per case the largest error of the attention against float64, of keys and values to the
operator on a CPU, and whether the slots that are not the scale's stayed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.ops.rotated_qkv import rotated_qkv
from toprovar_fx.ops.triton_rotated_attention import launch

from .interpreted_rotation import Operands, operands, relative


def cases() -> Iterator[tuple[str, Operands, float]]:
    yield "first token", operands(tokens=1, start=0), 0.05
    yield "one token", operands(tokens=1, start=4), 0.05
    for tokens, start in ((5, 3), (16, 0), (17, 6), (33, 5), (64, 7)):
        yield f"{tokens} tokens", operands(tokens=tokens, start=start), 0.05
    long = operands(tokens=9, start=150)
    for name in ("keys", "values"):
        long[name] = torch.randn(2, 6, 200, 16).half()
    yield "a long cache", long, 0.05
    yield "sharp", operands(tokens=20, start=5), 1.0
    yield "wide", operands(tokens=9, heads=2, width=128), 0.05
    given = operands(tokens=20)
    given["keep"] = torch.stack([torch.randperm(20) for _ in range(2)])
    yield "tokens that stand elsewhere", given, 0.05
    yield "a table per row", operands(tokens=20, tables=2), 0.05
    given = operands(tokens=20)
    given["keys"] = given["keys"].transpose(1, 2).contiguous().transpose(1, 2)
    yield "other caches", given, 0.05
    given = operands(heads=2)
    given["qkv"][0, 1, 0, 0, 3] = math.nan
    yield "not a number", given, 0.05


def exact(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    q, k, v = (each.double() for each in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def differences(given: Operands, scale: float) -> dict[str, object]:
    ours, theirs = (
        {**given, "keys": given["keys"].clone(), "values": given["values"].clone()} for _ in range(2)
    )
    start, tokens = given["start"], given["qkv"].shape[1]
    # What is behind the scale's slots is not read.
    for name in ("keys", "values"):
        ours[name][:, :, start + tokens :] = math.nan
    found = launch(**ours, scale=scale)
    queries = rotated_qkv(**theirs)
    end, slots = start + tokens, slice(start, start + tokens)
    expected = exact(queries, theirs["keys"][:, :, :end], theirs["values"][:, :, :end], scale)
    assert torch.equal(found.isnan(), expected.isnan())
    report: dict[str, object] = {
        "error": float((found.double() - expected).nan_to_num().abs().max()),
        "untouched": all(
            torch.equal(ours[name][:, :, :start], given[name][:, :, :start])
            and bool(ours[name][:, :, end:].isnan().all())
            for name in ("keys", "values")
        ),
    }
    for name in ("keys", "values"):
        report[name] = relative(ours[name][:, :, slots], theirs[name][:, :, slots])
    return report


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({name: differences(given, scale) for name, given, scale in cases()}))
