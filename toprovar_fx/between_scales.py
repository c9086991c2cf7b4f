"""What happens between two scales: sample bits, add their codes, resample and embed the sum for the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .models.bsq import MultiScaleBSQ
from .models.code_embedding import CodeEmbedding
from .runtime.recorded_function import RecordedFunction, memory_of
from .sampling import sample_bits


class Advance(NamedTuple):
    """What follows from the logits of a scale.

    Attributes:
        bits: sampled, ``[B, L, d]`` bool.
        summed: sum of the codes so far, ``[B, d, h, w]`` float32.
        tokens: what the next scale embeds, ``[B, L', d]``; None after the last.
        hidden: what the transformer then gets, ``[R, L', C]``; None where nobody told how to embed.
    """

    bits: Tensor
    summed: Tensor
    tokens: Tensor | None
    hidden: Tensor | None


class BetweenScales:
    """On CUDA some fifty small kernels, recorded as one graph per scale; elsewhere called as they are.

    Args:
        quantizer: turns bits into codes; it has no learned parameters, and its schedule may change.
        device: where it runs.
    """

    def __init__(self, quantizer: MultiScaleBSQ, device: torch.device | str) -> None:
        self.quantizer, self.device = quantizer, torch.device(device)
        self._advance = RecordedFunction(self._compute, memory_of(self.device))

    def __call__(
        self,
        logits: Tensor,
        uniform: Tensor,
        summed: Tensor,
        scale: int,
        cfg: float,
        tau: float,
        top_p: float,
        embedding: CodeEmbedding | None = None,
        rows: int = 1,
    ) -> Advance:
        """Go on from a scale.

        Args:
            logits: ``[R, L, 2 d]`` of the transformer.
            uniform: noise ``[B, L, d]``.
            summed: sum of the codes before this scale, ``[B, d, h, w]``.
            scale: index from 0.
            cfg: guidance scale; 1 where there are no unconditional rows.
            tau: temperature.
            top_p: nucleus.
            embedding: how the tokens are embedded.
            rows: R of the next scale, a multiple of B; the tokens are repeated for all of them.
        """
        weights = {} if embedding is None else dict(zip(("weight", "bias", "levels"), embedding, strict=True))
        found = self._advance(
            {"logits": logits, "uniform": uniform, "summed": summed, **weights},
            scale=scale,
            cfg=cfg,
            tau=tau,
            top_p=top_p,
            sides=self.quantizer.schedule,
            rows=rows,
        )
        bits, summed, *others = found
        return Advance(bits, summed, *others, *(None,) * (2 - len(others)))

    def _compute(
        self,
        logits: Tensor,
        uniform: Tensor,
        summed: Tensor,
        scale: int,
        cfg: float,
        tau: float,
        top_p: float,
        sides: tuple[tuple[int, int], ...],
        rows: int,
        **weights: Tensor,
    ) -> tuple[Tensor, ...]:
        bits = sample_bits(logits, uniform, cfg, tau, top_p)
        summed = self.quantizer.accumulate(summed, bits, scale)
        if scale + 1 == len(sides):
            return bits, summed
        tokens = self.quantizer.next_input(summed, scale)
        if not weights:
            return bits, summed, tokens
        hidden = CodeEmbedding(**weights)(tokens, scale + 1)
        return bits, summed, tokens, hidden.repeat(rows // len(hidden), 1, 1)
