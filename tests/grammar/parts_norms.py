"""Norms, layer scale and AdaLN: each treats a token alone, so one code serves model and reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import BlockSpec

Modulation = tuple[Tensor, ...]


class HandwrittenRMSNorm(nn.Module):
    """As LLaMA writes it: statistics in float, one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return wide.type_as(x) * self.weight


def make_norm(kind: str, width: int) -> nn.Module:
    """The norm of a block, its weights away from 1."""
    if kind == "none":
        return nn.Identity()
    if kind == "rms_handwritten":
        return HandwrittenRMSNorm(width)
    norm = {
        "layer": lambda: nn.LayerNorm(width),
        "layer_weightless": lambda: nn.LayerNorm(width, elementwise_affine=False),
        "rms": lambda: nn.RMSNorm(width, eps=1e-6),
    }[kind]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.1)
    return norm


class AdaLN(nn.Module):
    """Six vectors [R, 1, C] per block: gate, scale and shift of two branches, or none.

    "block": a linear layer of the condition. "shared": one for the model, to which every block adds its own.
    """

    def __init__(self, spec: BlockSpec, width: int) -> None:
        super().__init__()
        self.kind = spec.adaln
        if self.kind == "block":
            self.project = nn.Linear(width, 6 * width)
        elif self.kind == "shared":
            self.own = nn.Parameter(0.3 * torch.randn(1, 1, 6, width))

    def forward(self, condition: Tensor, shared: Tensor) -> Modulation | None:
        """`condition` [R, C]; `shared` [R, 1, 6, C]."""
        if self.kind == "none":
            return None
        if self.kind == "shared":
            return (self.own + shared).unbind(2)
        return tuple(part.unsqueeze(1) for part in self.project(F.silu(condition)).chunk(6, dim=-1))


def modulate(x: Tensor, modulation: Modulation | None, branch: int) -> Tensor:
    """Scale and shift of one branch (0: attention, 1: MLP)."""
    if modulation is None:
        return x
    return x * (1 + modulation[2 + branch]) + modulation[4 + branch]


class Finish(nn.Module):
    """What a branch's result goes through before it joins the stream: gate, layer scale, sandwich norm."""

    def __init__(self, spec: BlockSpec, width: int, branch: int) -> None:
        super().__init__()
        self.branch = branch
        self.gamma = nn.Parameter(0.5 + 0.1 * torch.randn(width)) if spec.layer_scale else None
        self.norm = make_norm(spec.norm, width) if spec.placement == "sandwich" else None

    def forward(self, y: Tensor, modulation: Modulation | None) -> Tensor:
        if modulation is not None:
            y = y * modulation[self.branch]
        if self.gamma is not None:
            y = self.gamma * y
        return y if self.norm is None else self.norm(y)
