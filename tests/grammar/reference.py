"""A pruned generation of a drawn model in plain PyTorch: chosen positions go through the modules' own `at`.

No cache of the model is used: a layer's memory is a list of rows with their positions, and attention over it
is spelled out in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..oracles import put, resized
from .model import STAGES, Block, DrawnModel, Given
from .spec import ATTENTION_MIXERS, CaseSpec
from .subject import Inputs

Place = tuple[int, int]


@dataclass
class Memory:
    """Rows of one layer so far: keys and values [R, H, T, E], positions [R, T]."""

    keys: Tensor | None = None
    values: Tensor | None = None
    positions: Tensor | None = None

    def add(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        if self.keys is None:
            self.keys, self.values, self.positions = keys, values, positions
        else:
            self.keys, self.values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
            self.positions = torch.cat((self.positions, positions), 1)


@dataclass
class Replay:
    """What the reference computed.

    Attributes:
        outputs: per scale.
        entropy: by (scale, layer) that ran, the mean over its queries and heads in nats.
    """

    outputs: list[Tensor] = field(default_factory=list)
    entropy: dict[Place, float] = field(default_factory=dict)


def replay(
    case: CaseSpec,
    model: DrawnModel,
    inputs: Inputs,
    keeps: Mapping[Place, Tensor],
    where: str,
    restore: str,
    last_stage: Mapping[int, str],
) -> Replay:
    """Run all scales, keeping `keeps[scale, layer]` [R, K] of a layer's tokens, or all without an entry.

    Args:
        where: "input": pruned tokens leave no keys and values; "query": they do; "attention": they query too.
        restore: pruned tokens get nothing ("residual") or the layer's latest whole update, resized ("cache").
        last_stage: by layer, the last of `STAGES` that pruned tokens miss; all tokens go through later ones.
    """
    found, memories, updates = Replay(), [Memory() for _ in case.blocks], {}
    shared = model.shared_modulation(inputs.condition)
    for scale, tokens in enumerate(case.scales.tokens):
        for block in model.blocks:
            if block.mixer is not None:
                block.mixer.tokens = tokens
        start = case.scales.ends[scale] - tokens
        x = inputs.hidden(scale)
        positions = torch.arange(start, start + tokens).expand(case.batch, -1)
        if model.table is not None:
            x = model.table.at(x, positions)
        if case.residual == "wide_stream":
            x = x.double()
        for layer, block in enumerate(model.blocks):
            keep, place = keeps.get((scale, layer)), (scale, layer)
            if block.table is not None:
                x = block.table.at(x, positions)
            base, stages = x, STAGES.index(last_stage.get(layer, STAGES[-1])) + 1
            given = Given(block.adaln(inputs.condition, shared), inputs.context, inputs.mask)
            if keep is not None and restore == "cache" and layer in updates:
                known, update = updates[layer]
                base = x + resized(update, case.scales.sides[known], case.scales.sides[scale])
            if keep is not None and keep.shape[1] == 0:
                x = base
            else:
                step = Step(block, memories[layer], given, keep, where)
                y = step.run(x, positions)
                for stage in STAGES[1:stages]:
                    y = getattr(block, stage)(y, given)
                found.entropy[place] = step.entropy
                if keep is None:
                    updates[layer] = scale, y - x
                x = y if keep is None else put(base, keep, y)
            for stage in STAGES[stages:]:
                x = getattr(block, stage)(x, given)
        found.outputs.append(model.leave(x, inputs.condition))
    for block in model.blocks:
        if block.mixer is not None:
            block.mixer.tokens = None
    return found


@dataclass
class Step:
    """One layer at one scale on chosen tokens."""

    block: Block
    memory: Memory
    given: Given
    keep: Tensor | None
    where: str
    entropy: float = float("nan")

    def run(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows `keep` (all if None) after the attention's sum; x [R, L, C] stands at `positions` [R, L]."""
        block = self.block
        if self.where == "input":
            x, positions = self.chosen(x), self.chosen(positions)
        h = block.enter(x, self.given.modulation, 0)
        y = self.attention(block.mix(h, "attention"), positions)
        if self.where != "input":
            x, h = self.chosen(x), self.chosen(h)
        return block.attention_sum(x, h, y, self.given)

    def chosen(self, rows: Tensor) -> Tensor:
        if self.keep is None:
            return rows
        return torch.stack([entry[row] for entry, row in zip(rows, self.keep, strict=True)])

    def attention(self, h: Tensor, positions: Tensor) -> Tensor:
        own, spec = self.block.attention, self.block.spec
        q, k, v = own.projections.at(h)
        q, k = own.norm.at(q, k)
        if own.rope is not None:
            q, k = own.rope.at(q, positions), own.rope.at(k, positions)
        if spec.mixer in ATTENTION_MIXERS:
            assert self.keep is None
            layout = (x.transpose(1, 2) if own.tokens_first else x for x in (q, k, v))
            return own.out(own.mixed(*layout))
        if spec.cache == "none":
            self.memory = Memory()
        self.memory.add(k, v, positions)
        if self.where == "query":
            q, positions = self.chosen(q.transpose(1, 2)).transpose(1, 2), self.chosen(positions)
        mixed = self.softmax(q, positions).transpose(1, 2).flatten(2)
        return own.out(self.chosen(mixed) if self.where == "attention" else mixed)

    def softmax(self, q: Tensor, positions: Tensor) -> Tensor:
        attend, memory = self.block.attention.attend, self.memory
        keys, values = (
            torch.cat([x[:, head // attend.groups, None] for head in range(q.shape[1])], 1).double()
            for x in (memory.keys, memory.values)
        )
        scores = attend.scale * q.double() @ keys.transpose(-2, -1)
        for entry, own, others in zip(scores, positions, memory.positions, strict=True):
            if attend.kind in ("sdpa_bias", "flex_table"):
                entry += attend.bias[0][:, own][:, :, others]
            if attend.kind == "flex_distance":
                entry += attend.slopes[:, None, None] * (own[:, None] - others)
            if attend.kind == "flex_temperature":
                entry *= attend.factors[:, own, None]
        if attend.kind.endswith("triangle"):
            later = memory.positions[:, None, None] > positions[:, None, :, None]
            scores = scores.masked_fill(later, float("-inf"))
        logs = scores.log_softmax(-1)
        self.entropy = float(-(logs.exp() * logs).nan_to_num(0.0).sum(-1).mean())
        return (logs.exp() @ values).to(q.dtype)
