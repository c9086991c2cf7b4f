"""Runs the kernel of `rotated_qkv` interpreted: `TRITON_INTERPRET=1 python -m tests.interpreted_rotation`.

A process of its own, because the interpreter is chosen when a kernel is defined. Prints one JSON object: per
case the largest difference to the operator on a CPU in queries, keys and values, over the largest number of a
head, and whether the slots that are not the scale's stayed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toprovar_fx.ops.rotated_qkv import rotated_qkv
from toprovar_fx.ops.triton_rotation import launch

Operands = dict[str, Any]


def operands(
    rows: int = 2,
    tokens: int = 5,
    heads: int = 6,
    width: int = 16,
    start: int = 3,
    tables: int = 1,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
) -> Operands:
    """Arguments of the operator; the slots of the caches hold numbers of their own."""
    angle = torch.randn(tables, 1, tokens, width // 2, device=device)
    table = torch.stack((angle.cos(), angle.sin()), -1)

    def half(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    return {
        "qkv": half(rows, tokens, 3, heads, width),
        "q_bias": half(heads * width),
        "v_bias": half(heads * width),
        "log_factor": 4 + half(1, heads, 1, 1),
        "max_log_factor": math.log(100),
        "cos": table[..., 0],
        "sin": table[..., 1],
        "keys": half(rows, heads, tokens + 7, width),
        "values": half(rows, heads, tokens + 7, width),
        "start": start,
        "keep": None,
    }


def cases() -> Iterator[tuple[str, Operands]]:
    yield "plain", operands()
    yield "bfloat16", operands(dtype=torch.bfloat16)
    yield "one token", operands(tokens=1, start=0)
    yield "wide", operands(heads=2, width=128)
    yield "more heads than a program takes", operands(heads=11, width=128)
    given = operands(tokens=6)
    given["keep"] = torch.stack([torch.randperm(6)[:6] for _ in range(2)])
    yield "tokens that stand elsewhere", given
    yield "a table per row", operands(tables=2)
    given = operands()
    given["keys"] = given["keys"].transpose(1, 2).contiguous().transpose(1, 2)
    given["values"] = torch.stack((given["values"],) * 2, -1)[..., 0]
    yield "other caches", given
    given = operands()
    given["qkv"][0, 0, 1] = 0
    yield "keys of zeros", given
    given = operands(heads=1)
    given["qkv"][0, 1, 0, 0, 3] = math.nan
    yield "not a number", given


def differences(given: Operands) -> dict[str, object]:
    """How far the kernel is from the operator on a CPU."""
    ours = {**given, "keys": given["keys"].clone(), "values": given["values"].clone()}
    theirs = {**given, "keys": given["keys"].clone(), "values": given["values"].clone()}
    expected = rotated_qkv(**theirs)
    found = expected.new_zeros(expected.transpose(1, 2).shape)
    launch(**ours, query=found)
    slots = slice(given["start"], given["start"] + expected.shape[2])
    untouched = True
    for name in ("keys", "values"):
        before, after = given[name].clone(), ours[name].clone()
        before[:, :, slots] = after[:, :, slots] = 0
        untouched &= torch.equal(before, after)
    pairs = {"query": (found.transpose(1, 2), expected)}
    pairs |= {name: (ours[name][:, :, slots], theirs[name][:, :, slots]) for name in ("keys", "values")}
    report: dict[str, object] = {name: relative(*pair) for name, pair in pairs.items()}
    return {**report, "untouched": untouched}


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number of its head; what is no number must be so in both."""
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.double().nan_to_num(), expected.double().nan_to_num()
    largest = expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return float(((found - expected).abs() / largest).max())


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({name: differences(given) for name, given in cases()}))
