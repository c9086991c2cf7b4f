"""Small step models whose packed rows cannot be parted, or not be known to be equally many."""

from __future__ import annotations

import torch
from torch import Tensor

from .odd_attention import Cached
from .packed_attentions import steps
from .stand_ins import flash_attn_varlen_forward, flash_attn_varlen_func


class Packed(Cached):
    """Nothing odd in itself."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, length = q.shape[0], q.shape[2]
        queries, keys, values = (self.merge(each) for each in (q, k, v))
        mixed = self.call(
            queries, keys, values, self.starts(rows, length), self.starts(rows, end), length, end
        )
        return mixed.unflatten(0, (rows, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def starts(self, rows: int, length: int) -> Tensor:
        return steps(rows, length)

    def call(self, *given: object) -> Tensor:
        return flash_attn_varlen_func(*given)


class Unequal(Packed):
    """A range of equal steps, one of which is written over."""

    def starts(self, rows: int, length: int) -> Tensor:
        starts = super().starts(rows, length)
        starts[1] = length - 1
        return starts


class UnequalThroughAView(Packed):
    def starts(self, rows: int, length: int) -> Tensor:
        starts = super().starts(rows, length)
        starts.narrow(0, 1, 1).sub_(1)
        return starts


class UnequalThroughOut(Packed):
    def starts(self, rows: int, length: int) -> Tensor:
        starts = super().starts(rows, length)
        torch.sub(starts, (starts == length).int(), out=starts)
        return starts


class UnknownStarts(Packed):
    def starts(self, rows: int, length: int) -> Tensor:
        return torch.linspace(0, rows * length, rows + 1).to(torch.int32)


class LongerSteps(Packed):
    """Rows of L + 1 queries, of which there are not as many."""

    def starts(self, rows: int, length: int) -> Tensor:
        return (torch.arange(rows + 1, dtype=torch.int32) * (length + 1)).clamp(max=rows * length)


class FewerRows(Packed):
    """All tokens of both batch rows attend as one row."""

    def starts(self, rows: int, length: int) -> Tensor:
        return torch.arange(2, dtype=torch.int32) * (rows * length)


class Causal(Packed):
    def call(self, *given: object) -> Tensor:
        return flash_attn_varlen_forward(*given, 0.0, 1.0, causal=True)[0]


class Window(Packed):
    def call(self, *given: object) -> Tensor:
        return flash_attn_varlen_forward(*given, 0.0, 1.0, False, 4)[0]


class LogSum(Packed):
    """The sum of the weights is used too."""

    def call(self, *given: object) -> Tensor:
        mixed, lse = flash_attn_varlen_forward(*given, 0.0, 1.0, False)
        return mixed + lse.mT.unsqueeze(-1)


class PackedAfterwards(Packed):
    """What follows works on packed rows."""

    def call(self, *given: object) -> Tensor:
        return flash_attn_varlen_func(*given) * 2.0


class Scrambled(Packed):
    """Heads and tokens are not swapped before the merge."""

    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], x.shape[3])


class WrittenAfterwards(Packed):
    """What the rows were copied from changes before the kernel runs."""

    def merge(self, x: Tensor) -> Tensor:
        merged = x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
        x.mul_(1.0)
        return merged
