"""Runs the kernels of `select_tokens` interpreted: `TRITON_INTERPRET=1 python -m tests.interpreted_select`.

A process of its own, because the interpreter is chosen when a kernel is defined. Prints one JSON object: per
case whether the kernels find the tokens that sorting finds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import import_module
from unittest.mock import patch

import torch
from torch import Tensor

from toprovar_fx.criteria.selection import select_tokens as by_sorting
from toprovar_fx.ops import triton_select
from toprovar_fx.ops.triton_select import COMPARED_AT_ONCE, NUMBERED_AT_ONCE, launch

# The package has an operator of the module's name.
operators = import_module("toprovar_fx.ops.select_tokens")
TILE = COMPARED_AT_ONCE
TINY = 1e-45
ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, TINY)


def levels(*shape: int, among: int = 5) -> Tensor:
    """Few distinct values, so many ties."""
    return torch.randint(-among, among, shape).float() / 2


def odd(*shape: int) -> Tensor:
    """Infinities, zeros of both signs, and what is no number."""
    return torch.tensor(ODD)[torch.randint(len(ODD), shape)]


def cases() -> Iterator[tuple[str, Tensor, int]]:
    for length in (1, 2, 7, 33, TILE - 1, TILE, TILE + 1, 2 * TILE + 37):
        for count in sorted({1, (length + 1) // 2, length}):
            yield f"ties, {count} of {length}", levels(2, length), count
            yield f"odd numbers, {count} of {length}", odd(2, length), count
    for value in (0.0, -3.0, math.nan, math.inf, -math.inf):
        yield f"all {value}", torch.full((2, 2 * TILE + 3), value), TILE + 9
    zeros = torch.tensor([-0.0, 0.0] * TILE)
    yield "zeros of both signs", zeros, TILE - 1
    yield "distinct", torch.randn(2, 2 * TILE), 50
    yield "none", levels(2, 9), 0
    yield "one axis", levels(TILE + 9), 20
    yield "three axes", levels(2, 3, 20), 6
    yield "numbered in two goes", levels(1, NUMBERED_AT_ONCE + 40), NUMBERED_AT_ONCE - 100
    yield "rows of a wider tensor", levels(3, 90)[:, 5:75], 30
    yield "every second token", levels(3, 140)[:, ::2], 30
    yield "rows last", levels(70, 3).T, 30
    yield "one row for all", levels(1, 70).expand(3, 70), 30
    yield "float16", levels(2, 70).half(), 30
    yield "no rows", levels(0, 70), 30


def guidance() -> Iterator[tuple[str, bool]]:
    """The operators with the kernels in place, and without."""
    images, length, count = 2, TILE + 6, 25
    # A CPU stands in for CUDA.
    kernels = patch.multiple(operators, _on_kernels=lambda score: True)
    for rule in ("shared", "cond", "per_row"):
        for rows in (images, 2 * images):
            for low in (True, False):
                # Half of the least number is rounded here, and computed exactly in a fused step on a card.
                strange = odd(rows, length)
                strange[strange == TINY] = 2.0
                maps = [levels(rows, length).abs(), strange, torch.rand(rows, length)]
                given = count, images, rule, low
                alone = [operators.select_tokens(each, *given) for each in maps]
                with kernels, patch.object(torch.cuda, "device"), patch.object(
                    triton_select, "launch", wraps=launch
                ) as launched:  # fmt: skip
                    found = [operators.select_tokens(each, *given) for each in maps]
                    together = operators.select_tokens_by_layer(maps, *given)
                same = all(map(torch.equal, found, alone)) and torch.equal(together, torch.stack(alone))
                whole = together.is_contiguous() and launched.call_count == len(maps) + 1
                yield f"{rule}, {rows} rows, low {low}", same and whole


if __name__ == "__main__":
    torch.manual_seed(0)
    same = {
        name: torch.equal(launch(score, count), by_sorting(score, count)) for name, score, count in cases()
    }
    print(json.dumps({**same, **dict(guidance())}))
