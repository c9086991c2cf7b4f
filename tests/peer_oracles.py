"""FastVAR as its paper and code have it, in plain eager PyTorch: no FX, no backend, the models' modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from toprovar_fx.models.block import modulate
from toprovar_fx.schedules import Schedule

from .models.subjects import State, Subject, TinyInfinity
from .oracles import InfinityLayer, PreNormLayer, Seen, enter, leave, put, resized, take

# What a sublayer adds to the residual stream: (x [R, K, C], positions [R, K] or None, cache) to [R, K, C].
Branch = Callable[[Tensor, Tensor | None, Seen], Tensor]


def branches(subject: Subject, state: State, layer: int, start: int, end: int) -> list[Branch]:
    """The sublayers of a layer."""
    if isinstance(subject, TinyInfinity):
        own = InfinityLayer(subject, state, layer, start, end)
        _, gamma, _, scale, _, shift = own.gss
        text = own.context.keys[layer], own.context.values[layer], own.context.mask
        return [
            partial(_attention, own),
            lambda x, rows, seen: own.block.ca(own.block.ca_norm(x), *text),
            lambda x, rows, seen: own.block.ffn(modulate(x, scale, shift)) * gamma,
        ]
    plain = PreNormLayer(subject, state, layer, start, end)
    return [partial(_attention, plain), lambda x, rows, seen: plain.rest(x) - x]


def _attention(layer: InfinityLayer | PreNormLayer, x: Tensor, rows: Tensor | None, seen: Seen) -> Tensor:
    attend = partial(seen.attend, rows=None, scale=layer.softmax_scale)
    return layer.attention(x, rows, attend) - x


def fastvar(
    subject: Subject,
    keep: Mapping[int, float],
    layers: range,
    *,
    images: int = 1,
    schedule: Schedule,
    scales: int,
    seed: int = 1,
) -> tuple[list[Tensor], dict[tuple[int, int, int], Tensor]]:
    """A generation that keeps `keep[scale]` of the tokens in `layers`.

    Returns:
        Logits per scale, and the kept tokens [R, K], ascending, by (scale, layer, sublayer).
    """
    subject.use(schedule)
    logits, chosen = [], {}
    cached: dict[tuple[int, int], tuple[int, Tensor]] = {}
    with torch.inference_mode():
        state = subject.state(images, schedule)
        filled = [0] * subject.layers
        for scale in range(scales):
            end, length = schedule.ends[scale], schedule.tokens[scale]
            x = enter(subject, subject.hidden(images, scale, schedule, seed), end - length, end)
            for layer in range(subject.layers):
                seen = Seen(state.keys[layer], state.values[layer], filled[layer])
                for at, branch in enumerate(branches(subject, state, layer, end - length, end)):
                    if scale in keep and layer in layers:
                        far = (x - x.mean(1, keepdim=True)).square().sum(-1)
                        count = length - int(length * (1 - keep[scale]))
                        rows = far.argsort(1, descending=True)[:, :count]
                        known, values = cached[layer, at]
                        whole = resized(values, schedule.sides[known], schedule.sides[scale])
                        added = put(whole, rows, branch(take(x, rows), rows, seen))
                        chosen[scale, layer, at] = rows.sort(1).values
                    else:
                        added = branch(x, None, seen)
                        cached[layer, at] = scale, added
                    x = x + added
                filled[layer] = seen.end
            logits.append(leave(subject, x, state))
    return logits, chosen
