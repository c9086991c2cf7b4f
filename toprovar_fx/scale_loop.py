"""The loop over scales: embed the code sum, predict, sample, add the codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._torch_private import one_size, uncompiled
from .between_scales import Advance, BetweenScales
from .models.bsq import MultiScaleBSQ
from .models.cache import KVCache
from .models.code_embedding import CodeEmbedding
from .models.infinity import Infinity
from .models.text import TextContext
from .schedules import Schedule


@dataclass
class ScaleLoop:
    """State of a generation between two scales: ``B`` images, ``R`` transformer rows (2B with guidance).

    Attributes:
        transformer: the ``Infinity`` model or a compiled wrapper of it.
        quantizer: turns bits into codes.
        schedule: the scales.
        context: the text of all rows.
        cache: keys and values of the scales that ran.
        uniform: noise of all scales, ``[B, sum L, bits]``.
        summed: sum of the codes so far, ``[B, d, h, w]`` float32.
        cfg: guidance scale.
        tau: temperature.
        top_p: nucleus.
        between: of the quantizer; those of one pipeline share what they recorded.
        bits: sampled bits of the scales that ran.
    """

    transformer: Any
    quantizer: MultiScaleBSQ
    schedule: Schedule
    context: TextContext
    cache: KVCache
    uniform: Tensor
    summed: Tensor
    cfg: float
    tau: float
    top_p: float
    between: BetweenScales
    bits: list[Tensor] = field(default_factory=list)
    # What followed from the scale that ran last.
    _advance: Advance | None = None

    def run_scale(self, scale: int, conditional_only: bool = False) -> None:
        """Run one scale; all before it have run.

        Args:
            scale: index from 0.
            conditional_only: leave the unconditional rows out. They then miss this scale in their cache, so
                they have to be left out at all later scales too.
        """
        end = self.schedule.ends[scale]
        context, cache, cfg, hidden = self.context, self.cache, self.cfg, self.embed(scale)
        if conditional_only and cfg != 1:
            images = len(self.uniform)
            context, cache, cfg, hidden = context.first(images), cache.first(images), 1.0, hidden[:images]
        logits = self.transformer(hidden, context, cache, end)
        uniform = self.uniform[:, end - self.schedule.tokens[scale] : end]
        settings = scale, cfg, self.tau, self.top_p
        rows = len(self.context.cond)
        found = self._advance = self.between(logits, uniform, self.summed, *settings, self._embedding(), rows)
        self.summed = found.summed
        self.bits.append(found.bits)

    def _embedding(self) -> CodeEmbedding | None:
        """How the next scale is embedded, if that may be recorded; else it is asked of the transformer."""
        model = uncompiled(self.transformer)
        # A recording has no gradients; and what wraps a model may embed in its own way.
        if torch.is_grad_enabled() or not isinstance(model, Infinity):
            return None
        return model.code_embedding()

    def embed(self, scale: int) -> Tensor:
        """Return the transformer's input of a scale, ``[R, L, C]``."""
        if scale == 0:
            # The graph of many tokens tells this call from its own at once, not by its last guard.
            return one_size(self.transformer.embed_first(self.context), 1)
        known = self._advance
        if known is None or known.tokens is None or known.summed is not self.summed:
            codes = self.quantizer.next_input(self.summed, scale - 1)
        elif known.hidden is not None:
            return known.hidden
        else:
            codes = known.tokens
        hidden: Tensor = self.transformer.embed_scale(codes, scale)
        return hidden.repeat(len(self.context.cond) // len(hidden), 1, 1)
