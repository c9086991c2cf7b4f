"""FastVAR and SparseVAR as published, in plain eager PyTorch: no FX, no backend, the models' modules."""

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


def sparsevar(
    subject: Subject,
    start: int,
    watched: int,
    shares: Mapping[int, float],
    *,
    images: int = 1,
    schedule: Schedule,
    seed: int = 1,
) -> tuple[list[Tensor], dict[int, list[list[int]]]]:
    """SparseVAR: from scale `start` on, tokens enter the first layer or none; one layer is watched.

    `shares` are kept shares by scale that take the place of the share of changed tokens.

    Returns:
        Logits per scale, and the kept tokens of every image by scale.
    """
    subject.use(schedule)
    logits, chosen = [], {}
    with torch.inference_mode():
        state = subject.state(images, schedule)
        filled = [0] * subject.layers
        change, states = torch.empty(0), torch.empty(0)
        for scale, (height, width) in enumerate(schedule.sides):
            end, length = schedule.ends[scale], schedule.tokens[scale]
            x = enter(subject, subject.hidden(images, scale, schedule, seed), end - length, end)
            rows, inner = None, x
            if scale >= start:
                below = schedule.sides[scale - 1]
                origin = [
                    (y * below[0] // height) * below[1] + z * below[1] // width
                    for y in range(height)
                    for z in range(width)
                ]
                share = shares.get(scale, float((change / change.max() > 0.6).float().mean(1).max()))
                anchors = [y * width + z for y in range(0, height, 4) for z in range(0, width, 4)]
                count = max(int(share * length), len(anchors), 2)
                chosen[scale] = []
                for own in change:
                    others = [token for token in range(length) if token not in anchors]
                    others.sort(key=lambda token, own=own: (-float(own[origin[token]]), token))
                    chosen[scale].append(sorted(anchors + others[: count - len(anchors)]))
                rows = torch.tensor(chosen[scale] * 2)
                inner = take(x, rows)
            for layer in range(subject.layers):
                seen = Seen(state.keys[layer], state.values[layer], filled[layer])
                before = inner
                for branch in branches(subject, state, layer, end - length, end):
                    inner = inner + branch(inner, rows, seen)
                filled[layer] = seen.end
                if layer == watched:
                    moved = (inner - before).square().mean(-1)
                    if rows is not None:
                        moved = torch.zeros(2 * images, length).scatter(1, rows, moved)
                    measured = (moved[:images] + moved[images:]) / 2
            if rows is not None:
                x = put(x, rows, inner)
                features = (states[:images] + states[images:]) / 2
                for image, kept in enumerate(chosen[scale]):
                    for token in set(range(length)) - set(kept):
                        best = _most_similar(features[image], token, origin, height, width)
                        if best is not None:
                            x[image, token], x[images + image, token] = (
                                x[image, best],
                                x[images + image, best],
                            )
                inner = x
            change, states = measured, inner
            logits.append(leave(subject, inner, state))
    return logits, chosen


def _most_similar(states: Tensor, token: int, origin: list[int], height: int, width: int) -> int | None:
    """The anchor at a corner of the token's window whose state is most like the token's, if it is like it."""
    row, column = token // width // 4 * 4, token % width // 4 * 4
    best, most = None, 0.8
    for y, z in ((row, column), (row, column + 4), (row + 4, column), (row + 4, column + 4)):
        if y < height and z < width:
            pair = states[origin[token]], states[origin[y * width + z]]
            similar = float(torch.cosine_similarity(*pair, dim=0))
            if similar > most:
                best, most = y * width + z, similar
    return best
