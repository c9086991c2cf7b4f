"""FlexAttention: as a node of a graph, what its `score_mod` computes of all scores, its operations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

# (q, k, v, score_mod, block_mask, scale, options, buffers, mask's buffers), as Dynamo writes it.
flex_attention = torch.ops.higher_order.flex_attention


def index_by_tensors() -> AbstractContextManager[object]:
    """While it is entered, `table[index]` with a scalar tensor reads no number: `vmap` goes through it."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    found: AbstractContextManager[object] = TransformGetItemToIndex()
    return found


class _NoModules:
    """In place of torch's tracker of modules, whose hooks are those of the whole process."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None: ...


class FlopCounter(FlopCounterMode):
    """torch's counter, which turns higher-order operators down, with those that it has a formula for.

    It counts for no module apart, and what other threads do meanwhile does not pass through it.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.mod_tracker = _NoModules()  # type: ignore[assignment]

    def __enter__(self) -> FlopCounter:
        """Begin to count."""
        super().__enter__()
        assert self.mode is not None
        self.mode.__exit__(None, None, None)
        self.mode = _CountingMode(self)
        self.mode.__enter__()
        return self


class _CountingMode(_FlopCounterMode):
    def _handle_higher_order_ops(
        self, func: object, types: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        if func is not flex_attention:
            return super()._handle_higher_order_ops(func, types, args, kwargs)
        return self.counter._count_flops(func, flex_attention(*args, **kwargs), args, kwargs)
