"""Positions: three ways to write RoPE, and a learned table. `at` computes chosen positions, by definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST = 64


class Rope(nn.Module):
    """Rotates pairs of channels by an angle that grows with the position.

    "rope_half" pairs channel i with i + E/2, the others 2i with 2i + 1; "rope_complex" multiplies complex
    numbers. Layout of q and k: [R, H, L, E], or [R, L, H, E] with `tokens_first`.
    """

    def __init__(self, kind: str, head_width: int, tokens_first: bool) -> None:
        super().__init__()
        self.kind, self.tokens_first = kind, tokens_first
        half = head_width // 2
        angles = torch.arange(LONGEST)[:, None] * 0.7 ** torch.arange(1, half + 1)[None]
        cosines, sines = angles.cos(), angles.sin()
        repeat = (lambda x: torch.cat((x, x), -1)) if kind == "rope_half" else (lambda x: x)
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("cosines", repeat(cosines), persistent=False)
        self.register_buffer("sines", repeat(sines), persistent=False)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, q: Tensor, k: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        if self.kind == "rope_complex":
            turns = self._placed(self.turns[start:end])
            return self._turn(q, turns), self._turn(k, turns)
        cosines, sines = self._placed(self.cosines[start:end]), self._placed(self.sines[start:end])
        rotate = self._half if self.kind == "rope_half" else self._pairs
        return rotate(q, cosines, sines), rotate(k, cosines, sines)

    def _placed(self, table: Tensor) -> Tensor:
        return table[None, :, None] if self.tokens_first else table[None, None]

    @staticmethod
    def _half(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cosines + torch.cat((-second, first), dim=-1) * sines

    @staticmethod
    def _pairs(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (-1, 2))
        first, second = pairs[..., 0], pairs[..., 1]
        return torch.stack(
            (first * cosines - second * sines, first * sines + second * cosines), dim=-1
        ).flatten(-2)

    @staticmethod
    def _turn(x: Tensor, turns: Tensor) -> Tensor:
        numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * turns).flatten(-2).type_as(x)

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [R, H, N, E], whose rows stand at `positions` [R, N], pair by pair."""
        half = x.shape[-1] // 2
        result = torch.empty_like(x)
        for pair in range(half):
            i, j = (pair, pair + half) if self.kind == "rope_half" else (2 * pair, 2 * pair + 1)
            angle = self.angles[positions, pair][:, None]
            result[..., i] = x[..., i] * angle.cos() - x[..., j] * angle.sin()
            result[..., j] = x[..., i] * angle.sin() + x[..., j] * angle.cos()
        return result


class PositionTable(nn.Module):
    """A learned vector per position, added to the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.3 * torch.randn(1, LONGEST, width))

    def forward(self, x: Tensor, start: int, end: int) -> Tensor:
        return x + self.table[:, start:end]

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [R, N, C] with rows at `positions` [R, N]."""
        return x + self.table[0][positions]
