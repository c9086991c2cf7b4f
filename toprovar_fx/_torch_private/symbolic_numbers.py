"""Numbers of a trace that are symbols: what they depend on, and what they stand for."""

from __future__ import annotations

import torch
from torch.utils._sympy.symbol import SymT, symbol_is_type


def depends_on_sizes(value: torch.SymFloat) -> bool:
    """Whether a number was computed from sizes of tensors, or from their contents."""
    symbols = value.node.expr.free_symbols
    return not value.node.has_hint() or not all(symbol_is_type(symbol, SymT.FLOAT) for symbol in symbols)


def hint_of(value: torch.SymFloat) -> float:
    """The number that a symbol stands for in this trace; nothing guards it."""
    return float(value.node.hint)
