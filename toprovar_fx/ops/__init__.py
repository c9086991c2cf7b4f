"""Custom operators of the ``toprovar::`` namespace; importing this package registers them."""

from .attention_entropy import attention_entropy

__all__ = ["attention_entropy"]
