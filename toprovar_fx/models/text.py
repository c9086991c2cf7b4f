"""What the transformer needs to know of the text, computed once per prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TextFeatures:
    """Output of a text encoder.

    Attributes:
        features: ``[B, T, text_channels]``; entries past a prompt's length are ignored.
        lengths: tokens of each prompt, ``[B]`` int64, at least 1.
    """

    features: Tensor
    lengths: Tensor


@dataclass
class TextContext:
    """Everything of a scale step that depends on the text alone, for ``R`` batch rows and ``T`` text tokens.

    Attributes:
        cond: pooled text, ``[R, C]``.
        gss: modulation shared by the blocks, ``[R, 1, 6, C]``: gamma1, gamma2, scale1, scale2, shift1,
            shift2.
        head_modulation: scale and shift before the head, ``[R, 1, 2, C]``.
        keys: per layer, keys of the text ``[R, H, T, head_dim]``.
        values: per layer, values of the text ``[R, H, T, head_dim]``.
        mask: additive, 0 for text and -inf for padding, ``[R, 1, 1, T]``.
    """

    cond: Tensor
    gss: Tensor
    head_modulation: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor

    def first(self, rows: int) -> TextContext:
        """The context of the first so many batch rows."""
        return TextContext(
            cond=self.cond[:rows],
            gss=self.gss[:rows],
            head_modulation=self.head_modulation[:rows],
            keys=[key[:rows] for key in self.keys],
            values=[value[:rows] for value in self.values],
            mask=self.mask[:rows],
        )


def padding_mask(lengths: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return the additive attention mask ``[R, 1, 1, tokens]`` of texts of ``lengths [R]``.

    Additive and in the compute dtype, because SDPA would otherwise convert a boolean mask in every layer and
    scale.
    """
    padded = torch.arange(tokens, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(padded.shape, device=lengths.device, dtype=dtype)
    return mask.masked_fill(padded, float("-inf"))[:, None, None, :]
