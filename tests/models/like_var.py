"""A small class-conditional next-scale model with the habits of upstream VAR; written for the adapter tests.

Caches are attributes that start as None and are concatenated; positions are absolute and added outside the
blocks; blocks are called by keyword from a loop over `patch_nums`; numpy picks the quantiser's layer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.log_gain = nn.Parameter(torch.zeros(1, heads, 1, 1))
        self.caching, self.cached_k, self.cached_v = False, None, None

    def kv_caching(self, enable: bool) -> None:
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        rows, length, width = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.q_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.normalize(q, dim=-1) * self.log_gain.exp(), F.normalize(k, dim=-1)
        if self.caching:
            if self.cached_k is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=1.0)
        return self.proj(mixed.transpose(1, 2).reshape(rows, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.norm = Attention(width, heads), nn.LayerNorm(width, elementwise_affine=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        modulation = self.modulation(F.silu(cond_BD)).view(len(cond_BD), 1, 6, -1)
        gain1, gain2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        inner = self.norm(x).mul(scale1.add(1)).add_(shift1)
        x = x + self.attn(inner, attn_bias=attn_bias).mul_(gain1)
        inner = self.norm(x).mul(scale2.add(1)).add_(shift2)
        return x + self.down(F.gelu(self.up(inner), approximate="tanh")).mul(gain2)


class Quantizer(nn.Module):
    def __init__(self, width: int, entries: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, width)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def add(self, codes: Tensor, chosen: Tensor, shares: Tensor, side: int, share: float) -> Tensor:
        # A little of the expected code besides the drawn one: every difference of the logits shows.
        rows = self.embedding(chosen) + 0.1 * shares @ self.embedding.weight
        grid = rows.transpose(1, 2).unflatten(-1, (side, side))
        grid = F.interpolate(grid, size=codes.shape[-2:], mode="bicubic")
        return codes + self.layers[np.argmin(np.abs(np.array([0.25, 0.75]) - share)).item()](grid)


class LikeVAR(nn.Module):
    """`decoded` holds the code sums that were decoded, `sums` the code sum after every scale."""

    def __init__(self, sides: tuple[int, ...] = (1, 2, 3, 4, 6), depth: int = 3, width: int = 32) -> None:
        super().__init__()
        self.patch_nums = sides
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(depth))
        self.classes, self.head = nn.Embedding(11, width), nn.Linear(width, 12)
        self.positions = nn.Parameter(torch.randn(1, sum(side * side for side in sides), width))
        self.vae_quant_proxy = (Quantizer(width, 12),)
        self.rng = torch.Generator()
        self.decoded: list[Tensor] = []
        self.sums: list[Tensor] = []

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self, B: int, label_B: Tensor, g_seed: int | None = None, cfg: float = 1.5, fail_at: int = -1
    ) -> Tensor:
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        cond = self.classes(torch.cat((label_B, torch.full_like(label_B, 10))))
        x = cond[:, None] + self.positions[:, :1]
        codes = torch.zeros(B, cond.shape[-1], self.patch_nums[-1], self.patch_nums[-1])
        self.sums, end = [], 0
        for block in self.blocks:
            block.attn.kv_caching(True)
        for scale, side in enumerate(self.patch_nums):
            if scale == fail_at:
                raise KeyboardInterrupt
            share = scale / (len(self.patch_nums) - 1)
            end += side * side
            for block in self.blocks:
                x = block(x=x, cond_BD=cond, attn_bias=None)
            logits = self.head(x)
            logits = (1 + cfg * share) * logits[:B] - cfg * share * logits[B:]
            shares = logits.softmax(-1)
            chosen = torch.multinomial(shares.flatten(0, 1), 1, generator=rng).view(B, -1)
            codes = self.vae_quant_proxy[0].add(codes, chosen, shares, side, share)
            self.sums.append(codes.clone())
            if scale + 1 < len(self.patch_nums):
                following = self.patch_nums[scale + 1]
                x = F.interpolate(codes, size=(following, following), mode="area").flatten(2).transpose(1, 2)
                x = (x + self.positions[:, end : end + following**2]).repeat(2, 1, 1)
        for block in self.blocks:
            block.attn.kv_caching(False)
        self.decoded.append(codes)
        return codes.tanh()
