"""Residuals and norms in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted_add_norm`.

Prints one JSON object: per case the largest errors of the sum and of its norm against float64, and whether
nothing but the rows that were named is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.ops import triton_add_norm
from toprovar_fx.ops.linear_add import WantedNorm
from toprovar_fx.ops.triton_add_norm import launch


@dataclass(frozen=True)
class Case:
    """Sizes, and what is there."""

    rows: int = 2
    tokens: int = 5
    width: int = 48
    parts: int = 1
    bias: bool = False
    gate: int = 0
    scale: int = 0
    shift: int = 1
    one: bool = False
    kept: bool = False
    offset: float = 0.0


def modulation(case: Case, count: int) -> list[Tensor]:
    """Addends of a factor: shared by the rows, and each row's own, cut out of several."""
    own = torch.randn(case.rows, 1, 6, case.width).half()[:, :, 3]
    return [own] if count == 1 else [torch.randn(1, 1, 6, case.width).half()[:, :, 1], own][:count]


def run(case: Case) -> dict[str, Any]:
    size = case.rows, case.tokens, case.width
    sums = torch.randn(case.parts, case.rows * case.tokens, case.width)
    sums = sums if case.parts > 1 else sums.half()
    bias = torch.randn(case.width).half() if case.bias else None
    residual = (torch.randn(*size[:2], 2 * case.width) + case.offset).half()[..., : case.width]
    gate, scale, shift = (modulation(case, count) for count in (case.gate, case.scale, case.shift))
    slots = case.tokens + 3 if case.kept else case.tokens
    out = torch.full((case.rows, slots, case.width), 7.0).half()
    keep = (
        torch.stack([torch.randperm(slots)[: case.tokens] for _ in range(case.rows)]) if case.kept else None
    )
    normed = torch.empty(size).half() if case.scale else None
    norm = None if normed is None else WantedNorm(normed, scale, shift, case.one, 1e-6)
    launch(sums, bias, residual, gate, out, keep, norm)

    def total(addends: list[Tensor]) -> Tensor:
        return torch.stack([each.double().expand(case.rows, 1, case.width) for each in addends]).sum(0)

    update = sums.double().sum(0).view(size) + (0 if bias is None else bias.double())
    expected = residual.double() + update * (total(gate) if gate else 1)
    written = out if keep is None else out[torch.arange(case.rows)[:, None], keep]
    found = {"error": float(((written.double() - expected).abs() / (1 + expected.abs())).max()), "norm": 0.0}
    if normed is not None:
        norm = F.layer_norm(written.double(), (case.width,), eps=1e-6) * (case.one + total(scale)) + total(
            shift
        )
        found["norm"] = float(((normed.double() - norm).abs() / (1 + norm.abs())).max())
    untouched = int((out == 7.0).all(-1).sum()) == case.rows * (slots - case.tokens)
    return {**found, "rest is as it was": untouched}


def cases() -> Iterator[tuple[str, Case]]:
    yield "sum", Case()
    yield "one token", Case(tokens=1, bias=True)
    for parts in (2, 4):
        yield f"{parts} parts", Case(parts=parts, bias=True, gate=1)
    every = Case(parts=4, bias=True, gate=2, scale=2, shift=2, one=True)
    yield "modulated", every
    yield "modulated, one image", replace(every, rows=1)
    yield "affine", Case(bias=True, scale=1)
    yield "single addends", Case(parts=2, gate=1, scale=1, one=True)
    yield "unlike addends", Case(parts=2, gate=1, scale=2, shift=1, one=True)
    yield "rows of a state", Case(parts=2, bias=True, gate=2, kept=True)
    yield "rows of a state, and norms", replace(every, kept=True)
    yield "a power of two", replace(every, width=64)
    yield "far from zero", replace(every, offset=50.0)


if __name__ == "__main__":
    torch.manual_seed(0)
    results = {name: run(case) for name, case in cases()}
    # Several rows a program, as of many tokens.
    triton_add_norm.MANY_ROWS = 1
    results.update({f"{name}, several rows": run(case) for name, case in cases()})
    print(json.dumps(results))
