"""The scores that a FlexAttention takes the softmax of, for what its kernels do not tell: the entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._torch_private import index_by_tensors

# Dimensions of score, b, h, q_idx and kv_idx that each of four `vmap`s runs over, the innermost first.
_AXES = (
    (0, None, None, None, 0),
    (0, None, None, 0, None),
    (0, None, 0, None, None),
    (0, 0, None, None, None),
)


def flex_scores(
    query: Tensor,
    key: Tensor,
    score_mod: Callable[..., Tensor],
    scale: float,
    buffers: Sequence[Tensor | int] = (),
) -> Tensor:
    """Return ``score_mod(scale q k^T, b, h, q_idx, kv_idx, *buffers)`` of all pairs.

    A graph may call this: it is nothing but tensor operators. Nothing is masked.

    Args:
        query: ``[B, H, Lq, E]``, floating point.
        key: ``[B, Hk, Lk, E]`` with H a multiple of Hk; head h attends to key head ``h // (H / Hk)``.
        score_mod: of scalars, as ``torch.nn.attention.flex_attention`` takes it.
        scale: factor of the scores.
        buffers: further arguments of ``score_mod``, the same for all pairs.

    Returns:
        ``[B, H, Lq, Lk]``, float32, or float64 for float64.
    """
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    keys = key.to(dtype).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query.to(dtype) @ keys.transpose(-2, -1)) * scale
    places = [torch.arange(size, device=scores.device, dtype=torch.int32) for size in scores.shape]
    of_all = score_mod
    for axes in _AXES:
        of_all = torch.vmap(of_all, in_dims=(*axes, *(None,) * len(buffers)))
    # The compiler's decompositions reject an operator of a symbolic size and a tensor that `vmap` batches.
    captured = (
        torch.scalar_tensor(buffer, dtype=torch.int32, device=scores.device)
        if isinstance(buffer, torch.SymInt)
        else buffer
        for buffer in buffers
    )
    with index_by_tensors():
        return of_all(scores, *places, *captured)
