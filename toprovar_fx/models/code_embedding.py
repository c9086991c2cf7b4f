"""Embeds the code sum of a scale; what it does it does with three tensors, if nobody changed the modules."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from .._torch_private import has_hooks


class CodeEmbedding(NamedTuple):
    """The weights of it.

    Attributes:
        weight, bias: of the linear layer, ``[C, bits]`` and ``[C]``.
        levels: what is added at every scale, ``[scales, C]``.
    """

    weight: Tensor
    bias: Tensor
    levels: Tensor

    def __call__(self, codes: Tensor, scale: int) -> Tensor:
        """Embed codes ``[R, L, bits]`` of any dtype as tokens ``[R, L, C]`` in that of the weights."""
        return F.linear(codes.to(self.weight.dtype), self.weight, self.bias) + self.levels[scale]


def embedding_of(linear: nn.Module, levels: nn.Module) -> CodeEmbedding | None:
    """The weights of two modules; None where calling them does more than a plain layer does.

    Subclasses, parametrisations, hooks and a `forward` of the instance (as `accelerate` sets) are more.
    """
    if type(linear) is not nn.Linear or type(levels) is not nn.Embedding or "forward" in vars(linear):
        return None
    if has_hooks(linear) or linear.bias is None:
        return None
    return CodeEmbedding(linear.weight, linear.bias, levels.weight)
