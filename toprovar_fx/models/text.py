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
        keys: of the text, ``[layers, R, H, T, head_dim]``: one tensor, for a compiled step gets it at every
            scale, and each of its inputs costs the host time.
        values: of the text, as ``keys``.
        mask: additive, 0 for text and -inf for padding, ``[R, 1, 1, T]``.
    """

    cond: Tensor
    gss: Tensor
    head_modulation: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor

    def by_layer(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of each layer, ``[R, H, T, head_dim]``, as views."""
        return self.keys.unbind(), self.values.unbind()

    def first(self, rows: int) -> TextContext:
        """The context of the first so many batch rows."""
        return TextContext(
            cond=self.cond[:rows],
            gss=self.gss[:rows],
            head_modulation=self.head_modulation[:rows],
            keys=self.keys[:, :rows],
            values=self.values[:, :rows],
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
