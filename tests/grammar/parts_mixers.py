"""Operators that let a token depend on others (or on chance): no block with one of them may lose rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import HIDDEN_MIXERS

_MIX = {
    "cumsum": lambda x, w: x.cumsum(dim=1) / 4,
    "roll": lambda x, w: x + torch.roll(x, 1, dims=1),
    "flip": lambda x, w: x + x.flip(1),
    "conv": lambda x, w: F.conv1d(x.transpose(1, 2), w, padding=1).transpose(1, 2),
    "sort": lambda x, w: x.sort(dim=1).values,
    "pool": lambda x, w: F.avg_pool1d(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2),
    "token_norm": lambda x, w: F.normalize(x, dim=1),
    "token_softmax": lambda x, w: x.softmax(dim=1),
    "token_mean": lambda x, w: x - x.mean(dim=1, keepdim=True),
    "token_matmul": lambda x, w: torch.matmul(torch.matmul(x, x.transpose(1, 2)).tanh(), x),
    "first_token": lambda x, w: x + x[:, :1],
    "reorder": lambda x, w: x + x[:, torch.arange(x.shape[1] - 1, -1, -1, device=x.device)],
    "global_scale": lambda x, w: x / (1 + x.abs().amax()),
    "length_factor": lambda x, w: x * (4.0 / x.shape[1]),
    "batch_mean": lambda x, w: x + x.mean(dim=0, keepdim=True),
    "dropout": lambda x, w: F.dropout(x, 0.25, training=True),
}
assert set(_MIX) == set(HIDDEN_MIXERS)


class Mixer(nn.Module):
    """One of `HIDDEN_MIXERS` of [R, L, C]; it has no `at`, since it computes all tokens or nothing.

    But for the factor made of L, where that is a constant: `tokens` says how many there are, if x has some.
    """

    tokens: int | None = None

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(width, width, 3) / (2 * width**0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "length_factor" and self.tokens is not None:
            return x * (4.0 / self.tokens)
        return _MIX[self.kind](x, self.weight)
