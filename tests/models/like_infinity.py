"""A small text-conditional next-scale model with the habits of upstream Infinity; written for the adapter
tests.

RoPE tables lie in a dictionary keyed by the schedule's text and are cut at an offset that numpy sums; text is
packed and attended to by a variable-length kernel; blocks come in chunks; guidance can act between layers;
with `fused_norm=False` a block does not tell its attention the scale.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.upstream_shims import flash_attn_varlen_kvpacked_func

Schedule = list[tuple[int, int, int]]


def rotate(q, k, scale_schedule, tables, scale_ind):
    both = torch.stack((q, k))
    with torch.autocast(both.device.type, enabled=False):
        key = str(tuple(scale_schedule))
        start = np.sum([t * h * w for t, h, w in scale_schedule[:scale_ind]]) if scale_ind else 0
        tables[key] = tables[key].to(both.device)
        table = tables[key][:, :, :, :, start : start + both.shape[3]]
        pairs = both.reshape(*both.shape[:-1], -1, 2)
        left = table[0] * pairs[..., 0] - table[1] * pairs[..., 1]
        right = table[1] * pairs[..., 0] + table[0] * pairs[..., 1]
        return torch.stack((left, right), dim=-1).reshape(*both.shape).unbind(0)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.caching, self.cached_k, self.cached_v = False, None, None

    def kv_caching(self, enable: bool) -> None:
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(
        self,
        x,
        attn_bias_or_two_vector,
        attn_fn=None,
        scale_schedule=None,
        rope2d_freqs_grid=None,
        scale_ind=0,
    ):
        rows, length, width = x.shape
        qkv = self.mat_qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (part.contiguous() for part in qkv.unbind(0))
        q, k = F.normalize(q, dim=-1) * 3.0, F.normalize(k, dim=-1)
        if rope2d_freqs_grid is not None:
            q, k = rotate(q, k, scale_schedule, rope2d_freqs_grid, scale_ind)
        if self.caching:
            if self.cached_k is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias_or_two_vector, scale=1.0)
        return self.proj(mixed.transpose(1, 2).reshape(rows, length, width))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.cos_attn = heads, width // heads, False
        self.scale = self.head_dim**-0.5
        self.mat_q, self.mat_kv = nn.Linear(width, width), nn.Linear(width, 2 * width, bias=False)
        self.proj, self.proj_drop = nn.Linear(width, width), nn.Identity()
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))

    def forward(self, q, ca_kv):
        text, starts, longest = ca_kv
        rows, length = q.shape[:2]
        kv = F.linear(text, self.mat_kv.weight, torch.cat((self.zero_k_bias, self.v_bias)))
        kv = kv.view(len(text), 2, self.num_heads, self.head_dim).to(torch.bfloat16)
        queries = self.mat_q(q).view(-1, self.num_heads, self.head_dim).to(torch.bfloat16)
        own = torch.arange(0, length * (rows + 1), length, dtype=torch.int32)
        mixed = flash_attn_varlen_kvpacked_func(
            queries, kv, own, starts, max_seqlen_q=length, max_seqlen_k=longest, softmax_scale=self.scale
        )
        return self.proj_drop(self.proj(mixed.reshape(rows, length, -1).float()))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, fused_norm: bool) -> None:
        super().__init__()
        self.sa, self.ca = SelfAttention(width, heads), CrossAttention(width, heads)
        self.norm, self.ca_norm = nn.LayerNorm(width, elementwise_affine=False), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU("tanh"), nn.Linear(2 * width, width))
        self.ada = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.fused_norm_func = norm_and_shift if fused_norm else None

    def forward(
        self,
        x,
        cond_BD,
        ca_kv,
        attn_bias_or_two_vector,
        attn_fn=None,
        scale_schedule=None,
        rope2d_freqs_grid=None,
        scale_ind=0,
    ):
        with torch.autocast("cpu", enabled=False):
            gain1, gain2, scale1, scale2, shift1, shift2 = (self.ada + cond_BD).unbind(2)
        place = (attn_bias_or_two_vector, attn_fn, scale_schedule, rope2d_freqs_grid)
        inner = norm_and_shift(self.norm, x, scale1, shift1)
        seen = self.sa(inner, *place, scale_ind=scale_ind) if self.fused_norm_func else self.sa(inner, *place)
        x = x + seen.mul_(gain1)
        x = x + self.ca(self.ca_norm(x), ca_kv).float()
        return x + self.ffn(norm_and_shift(self.norm, x, scale2, shift2)).mul(gain2)


def norm_and_shift(norm, x, scale, shift):
    return norm(x.float()).mul(scale.add(1)).add_(shift)


class Chunk(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class LikeInfinity(nn.Module):
    """`sums` holds the code sum after every scale."""

    BITS = 6

    def __init__(
        self, schedule: Schedule, depth: int = 3, width: int = 32, heads: int = 2, fused_norm: bool = True
    ) -> None:
        super().__init__()
        blocks = [Block(width, heads, fused_norm) for _ in range(depth)]
        self.unregistered_blocks = blocks
        self.block_chunks = nn.ModuleList(Chunk([block]) for block in blocks)
        self.add_lvl_embeding_only_first_block = 1
        tokens = sum(h * w for _, h, w in schedule)
        angles = torch.randn(tokens, width // heads // 2, generator=torch.Generator().manual_seed(0))
        table = torch.stack((angles.cos(), angles.sin()))[:, None, None, None]
        self.rope2d_freqs_grid = {str(tuple(schedule)): table}
        self.levels, self.start = nn.Embedding(15, width), nn.Parameter(torch.randn(1, 1, width))
        self.pool, self.shared = nn.Linear(width, width), nn.Linear(width, 6 * width)
        self.word_embed, self.head = nn.Linear(self.BITS, width), nn.Linear(width, 2 * self.BITS)
        self.rng = torch.Generator()
        self.sums: list[Tensor] = []

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        scale_schedule=None,
        label_B_or_BLT=None,
        B=1,
        g_seed=None,
        cfg_list=(),
        cfg_insertion_layer=(0,),
        trunk_scale=1000,
        fail_at=-1,
    ):
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        text, lengths, starts, longest = label_B_or_BLT
        text, starts = torch.cat((text, text * 0.1)), torch.cat((starts, starts[1:] + starts[-1]))
        ca_kv = (text, starts, longest)
        cond = self.pool(torch.stack([part.mean(0) for part in text.split([*lengths, *lengths])]))
        x, gss = cond[:, None] + self.start, self.shared(cond)[:, None].unflatten(-1, (6, -1))
        inserted = [len(self.unregistered_blocks) + item for item in cfg_insertion_layer if item < 0]
        for block in self.unregistered_blocks:
            block.sa.kv_caching(True)
        codes, self.sums = 0, []
        for si, (_, height, width) in enumerate(scale_schedule):
            if si >= trunk_scale:
                break
            if si == fail_at:
                raise KeyboardInterrupt
            cfg, layer = cfg_list[si], 0
            for index, chunk in enumerate(self.block_chunks):
                if index == 0:
                    x[:, : height * width] += self.levels(torch.full((len(x), height * width), si))
                for block in chunk.module:
                    x = block(
                        x=x,
                        cond_BD=gss,
                        ca_kv=ca_kv,
                        attn_bias_or_two_vector=None,
                        attn_fn=None,
                        scale_schedule=scale_schedule,
                        rope2d_freqs_grid=self.rope2d_freqs_grid,
                        scale_ind=si,
                    )
                    if cfg != 1 and layer in inserted:
                        x = cfg * x[:B] + (1 - cfg) * x[B:]
                        x = torch.cat((x, x), 0)
                    layer += 1
            logits = self.head(x.float())
            guided = cfg != 1 and 0 in cfg_insertion_layer
            logits = cfg * logits[:B] + (1 - cfg) * logits[B:] if guided else logits[:B]
            shares = logits.unflatten(-1, (-1, 2)).softmax(-1)
            bits = torch.multinomial(shares.flatten(0, 2), 1, generator=rng).view(B, height, width, -1)
            # A little of the probabilities besides the drawn bits: every difference of the logits shows.
            codes_here = bits.float() * 2 - 1 + 0.1 * shares[..., 1].view(B, height, width, -1)
            grid = codes_here.permute(0, 3, 1, 2)
            codes = codes + F.interpolate(grid, size=scale_schedule[-1][1:], mode="bilinear")
            self.sums.append(codes.clone())
            if si + 1 < len(scale_schedule):
                x = F.interpolate(codes, size=scale_schedule[si + 1][1:], mode="bilinear")
                x = self.word_embed(x.flatten(2).transpose(1, 2)).repeat(2, 1, 1)
        for block in self.unregistered_blocks:
            block.sa.kv_caching(False)
        return codes
