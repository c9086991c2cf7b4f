"""Upstream cross-attention to packed texts, with what depends on the token count inside one operator.

What upstream does, at every scale and layer: project the text to keys and values, flatten batch rows and
tokens into one axis, and call flash-attn's variable-length kernel with row starts computed from the token
count. The projection does not depend on the scale; the flattening and the starts would have to be rewritten
for every number of kept tokens, and the kernel is opaque to Dynamo. What happens here: the projection runs
once per generation, and `toprovar::packed_attention` calls the kernel that upstream calls, with the same
operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._torch_private import varies
from ..ops.packed_attention import kernel_number

KERNEL = "flash_attn_varlen_kvpacked_func"


class PackedText(NamedTuple):
    """The texts of all batch rows as one layer attends to them.

    Attributes:
        kv: keys and values, `[N, 2, H, E]`.
        starts: first row of each text and their total, `[R + 1]` int32.
        longest: `[T, 0]`, with the length T of the longest text as its size, so that no graph is bound to it.
    """

    kv: Tensor
    starts: Tensor
    longest: Tensor


class TextAttention(nn.Module):
    """An upstream cross-attention that takes `PackedText`.

    Args:
        inner: the upstream module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.kernel = kernel_number(kernel_of(inner))

    def project(self, text: Tensor) -> Tensor:
        """Keys and values `[N, 2, H, E]` of packed text features `[N, C]`."""
        inner: Any = self.inner
        bias = torch.cat((inner.zero_k_bias, inner.v_bias))
        projected = F.linear(text, inner.mat_kv.weight, bias)
        kv = projected.view(len(text), 2, inner.num_heads, inner.head_dim)
        return varies(kv.contiguous(), 0)

    def forward(self, x: Tensor, text: PackedText) -> Tensor:
        """Attend from x [R, L, C] to the text of each row."""
        inner: Any = self.inner
        mixed = torch.ops.toprovar.packed_attention(
            inner.mat_q(x), text.kv, text.starts, text.longest.shape[0], inner.scale, self.kernel
        )
        result: Tensor = inner.proj_drop(inner.proj(mixed))
        return result


def kernel_of(attention: nn.Module) -> Callable[..., Tensor]:
    """The variable-length kernel in the namespace of the attention's own code."""
    found: Callable[..., Tensor] = type(attention).forward.__globals__[KERNEL]  # type: ignore[attr-defined]
    return found
