"""Custom operators of the ``toprovar::`` namespace; importing this package registers them."""

from .attention import attention
from .attention_entropy import attention_entropy
from .attention_with_entropy import attention_with_entropy
from .linear import linear
from .linear_add import linear_add, linear_add_norm, linear_add_rows
from .linear_gelu import linear_gelu
from .logits_entropy import logits_entropy, masked_attention_entropy
from .packed_attention import packed_attention
from .packed_rows import packed_cross_attention, packed_self_attention
from .projected_attention import projected_attention
from .rotated_attention import rotated_attention
from .rotated_qkv import rotated_qkv
from .select_tokens import select_tokens
from .sigma_ratio import sigma_ratio

__all__ = [
    "attention",
    "attention_entropy",
    "attention_with_entropy",
    "linear",
    "linear_add",
    "linear_add_norm",
    "linear_add_rows",
    "linear_gelu",
    "logits_entropy",
    "masked_attention_entropy",
    "packed_attention",
    "packed_cross_attention",
    "packed_self_attention",
    "projected_attention",
    "rotated_attention",
    "rotated_qkv",
    "select_tokens",
    "sigma_ratio",
]
