"""What the transformer is trained on: corrupted inputs, clean targets, weighted bit cross entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.bsq import MultiScaleBSQ


@dataclass(frozen=True)
class Objective:
    """Constants of a truncated sequence of scales.

    Attributes:
        scales: number of scales.
        weights: weight of every token, ``[L]``, summing to 1.
        averaging: matrix ``[S, L]`` that averages token values over each scale.
    """

    scales: int
    weights: Tensor
    averaging: Tensor

    @classmethod
    def build(cls, tokens: tuple[int, ...], scales: int, power: float, device: torch.device) -> Objective:
        """Weigh a token of a scale with n tokens by ``n ** -power`` over the first `scales` scales.

        With power 0.5 a scale as a whole weighs as its side, as in Infinity's reweighted loss.
        """
        counts = torch.tensor(tokens[:scales])
        scale_of = torch.repeat_interleave(torch.arange(scales), counts)
        weights = counts.float()[scale_of] ** -power
        averaging = F.one_hot(scale_of, scales).t().float() / counts[:, None]
        return cls(scales, (weights / weights.sum()).to(device), averaging.to(device))


@torch.no_grad()
def corrupt(
    quantizer: MultiScaleBSQ, z: Tensor, scales: int, flips: float, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Quantise latents with self-correction.

    Args:
        quantizer: the tokenizer's quantiser.
        z: latents ``[B, d, h, w]`` float32.
        scales: quantise the first so many scales.
        flips: the flip probability of an image is uniform in ``[0, flips]``.
        generator: source of randomness on the device.

    Returns:
        Target bits of all tokens, bool ``[B, L, d]``, and the inputs of scales 1, 2, ... (``[B, L_s, d]``).
    """
    probability = torch.rand(z.shape[0], device=z.device, generator=generator) * flips
    encoding = quantizer.encode(z, flip_prob=probability, generator=generator, scales=scales)
    return torch.cat(encoding.bits, dim=1), encoding.inputs


def bit_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Two-class cross entropy of every bit.

    Args:
        logits: ``[B, L, 2 d]``; entries ``2 i`` and ``2 i + 1`` are bit i being 0 and 1.
        targets: bool ``[B, L, d]``.
        weights: ``[L]``, summing to 1.

    Returns:
        The weighted loss in nats per bit, and the accuracy of each token over batch and bits, ``[L]``.
    """
    pair = logits.float().unflatten(-1, (-1, 2))
    # Cross entropy of two classes is the logistic loss of the difference of their logits.
    margin = torch.where(targets, 1.0, -1.0) * (pair[..., 1] - pair[..., 0])
    loss = (F.softplus(-margin).mean((0, 2)) * weights).sum()
    return loss, (margin.detach() > 0).float().mean((0, 2))
