"""Custom operators of the ``toprovar::`` namespace; importing this package registers them."""

from .attention_entropy import attention_entropy
from .select_tokens import select_tokens

__all__ = ["attention_entropy", "select_tokens"]
