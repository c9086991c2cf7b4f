"""What a generation of `models/attentions.py` must compute: chosen rows, attention in plain float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .models.attentions import LAYERS, Attending
from .models.subjects import SQUARE, Subject
from .oracles import Place, Where, put, take


@dataclass
class Replayed:
    """Logits per scale; entropies [R, K or L] in nats by (scale, layer), all keys or the own scale's."""

    logits: list[Tensor] = field(default_factory=list)
    entropy: dict[Place, Tensor] = field(default_factory=dict)
    scale_entropy: dict[Place, Tensor] = field(default_factory=dict)


def replay(subject: Subject, keeps: Mapping[Place, Tensor], where: Where) -> Replayed:
    """A generation of one image in which pruned tokens get nothing (`restore="residual"`)."""
    model = subject.model
    assert isinstance(model, Attending)
    found = Replayed()
    caches: list[tuple[Tensor, Tensor] | None] = [None] * LAYERS
    with torch.inference_mode():
        for scale, end in enumerate(SQUARE.ends):
            x = subject.hidden(1, scale, SQUARE)
            start = end - x.shape[1]
            for layer in range(LAYERS):
                place = scale, layer
                every = torch.arange(x.shape[1]).expand(len(x), -1)
                keep = keeps.get(place, every)
                q, k, v = model.project(x, layer)
                asked = every if where == "attention" else keep
                if where == "input":
                    k, v = take(k, keep), take(v, keep)
                before = caches[layer] if model.cached else None
                if before is not None:
                    k, v = torch.cat((before[0], k), 1), torch.cat((before[1], v), 1)
                seen = 0 if before is None else before[0].shape[1]
                caches[layer] = k, v
                logits = _logits(
                    model, take(q, asked), k, asked, keep if where == "input" else every, start, end
                )
                mixed = model.after(_mix(logits, v), logits)
                found.entropy[place] = _entropy(logits)
                found.scale_entropy[place] = _entropy(logits[..., seen:])
                if where == "attention":
                    mixed = take(mixed, keep)
                x = put(x, keep, model.rest(take(x, keep), mixed.to(x.dtype), layer))
            found.logits.append(model.head(x))
    return found


def _logits(
    model: Attending, q: Tensor, k: Tensor, rows: Tensor, own_keys: Tensor, start: int, end: int
) -> Tensor:
    """[R, H, rows, keys] in float64; query head h has key head h // (H / Hk)."""
    k = k.double().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    logits = model.scale * torch.einsum("rlhe,rmhe->rhlm", q.double(), k)
    logits = model.modified(logits, rows + start)
    bias = model.bias(start, end)
    if bias is None:
        return logits
    bias = torch.stack([bias[:, row] if bias.shape[1] != 1 else bias for row in rows])
    if not model.cached:
        bias = torch.stack([own[..., columns] for own, columns in zip(bias, own_keys, strict=True)])
    return logits + bias


def _mix(logits: Tensor, v: Tensor) -> Tensor:
    v = v.double().repeat_interleave(logits.shape[1] // v.shape[2], dim=2)
    return torch.einsum("rhlm,rmhe->rlhe", logits.softmax(-1), v)


def _entropy(logits: Tensor) -> Tensor:
    shares = logits.softmax(-1)
    return -torch.xlogy(shares, shares).sum(-1).mean(1)
