"""Infinity's logits in float64, one head and one image at a time: what the model is compared with."""

from __future__ import annotations

import math

import torch


def plain_softmax_attention(q, k, v, scale, mask=None):
    logits = scale * q @ k.T
    if mask is not None:
        logits = torch.where(mask, logits, torch.tensor(-torch.inf, dtype=logits.dtype))
    return torch.softmax(logits, -1) @ v


def plain_rotation(x, schedule, grid):
    """Rotate ``[L, head_dim]`` as complex numbers, position by position."""
    head_dim = x.shape[-1]
    angles = []
    for height, width in schedule.sides:
        for i in range(height):
            for j in range(width):
                y, z = round(i * grid[0] / height), round(j * grid[1] / width)
                speed = [10000.0 ** (-4 * m / head_dim) for m in range(head_dim // 4)]
                angles.append([y * s for s in speed] + [z * s for s in speed])
    angle = torch.tensor(angles, dtype=x.dtype)[: len(x)]
    turned = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.view_as_real(turned).flatten(-2)


@torch.no_grad()
def plain_logits(model, features, length, codes, schedule, grid):
    """Logits of all scales of ONE image: float64, one head at a time, unpadded text, one dense block mask."""
    w = {key: value.double() for key, value in model.state_dict().items()}
    heads, depth = model.config.heads, model.config.depth
    width = model.config.width

    def linear(x, name, bias=True):
        return x @ w[name + ".weight"].T + (w[name + ".bias"] if bias else 0)

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def silu(x):
        return x / (1 + torch.exp(-x))

    def split(x, count):
        return x.chunk(count, -1)

    text = features[:length].double()
    text = text / (text.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w["text_norm.weight"]
    pool = "text_proj_for_sos.ca."
    k, v = split(text @ w[pool + "mat_kv.weight"].T, 2)
    v = v + w[pool + "v_bias"]
    pool_heads = model.config.text_pool_heads
    pooled = [
        plain_softmax_attention(q[None], kh, vh, (width / pool_heads) ** -0.5)
        for q, kh, vh in zip(w[pool + "mat_q"][0], split(k, pool_heads), split(v, pool_heads), strict=True)
    ]
    cond = linear(torch.cat(pooled, -1), pool + "proj")
    text = linear(gelu(linear(text, "text_proj_for_ca.0")), "text_proj_for_ca.2")
    gss = linear(silu(cond), "shared_ada_lin.1").view(6, width)
    levels = w["lvl_embed.weight"]
    x = [cond + w["pos_start"][0] + levels[0]]
    x += [linear(code.double(), "word_embed") + levels[s] for s, code in enumerate(codes, start=1)]
    x = torch.cat(x)
    scale_of = torch.cat([torch.full((n,), s) for s, n in enumerate(schedule.tokens)])[: len(x)]
    mask = scale_of[:, None] >= scale_of[None]
    for layer in range(depth):
        b = f"block_chunks.0.module.{layer}."
        gamma1, gamma2, scale1, scale2, shift1, shift2 = w[b + "ada_gss"].view(6, width) + gss
        qkv = (norm(x) * (1 + scale1) + shift1) @ w[b + "sa.mat_qkv.weight"].T
        qkv = qkv + torch.cat((w[b + "sa.q_bias"], torch.zeros(width, dtype=x.dtype), w[b + "sa.v_bias"]))
        out = []
        for head, (q, k, v) in enumerate(zip(*(split(part, heads) for part in split(qkv, 3)), strict=True)):
            factor = min(w[b + "sa.scale_mul_1H11"].flatten()[head].exp().item(), 100.0)
            q = plain_rotation(q / q.norm(dim=-1, keepdim=True) * factor, schedule, grid)
            k = plain_rotation(k / k.norm(dim=-1, keepdim=True), schedule, grid)
            out.append(plain_softmax_attention(q, k, v, 1.0, mask))
        x = x + linear(torch.cat(out, -1), b + "sa.proj") * gamma1
        q = linear(norm(x) * w[b + "ca_norm.weight"] + w[b + "ca_norm.bias"], b + "ca.mat_q")
        k, v = split(text @ w[b + "ca.mat_kv.weight"].T, 2)
        v = v + w[b + "ca.v_bias"]
        out = [
            plain_softmax_attention(qh, kh, vh, (width / heads) ** -0.5)
            for qh, kh, vh in zip(split(q, heads), split(k, heads), split(v, heads), strict=True)
        ]
        x = x + linear(torch.cat(out, -1), b + "ca.proj")
        hidden = gelu(linear(norm(x) * (1 + scale2) + shift2, b + "ffn.fc1"))
        x = x + linear(hidden, b + "ffn.fc2") * gamma2
    scale, shift = linear(silu(cond), "head_nm.ada_lin.1").view(2, width)
    return linear(norm(x) * (1 + scale) + shift, "head")
