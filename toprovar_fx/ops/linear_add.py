"""Operators `toprovar::linear_add...`: a linear layer, the residual that it updates, and the next norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .split_product import in_parts
from .triton_found import has_triton

# Of the kernel; elsewhere any will do.
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
WIDEST = 8192


class WantedNorm(NamedTuple):
    """A norm of a sum, and where it goes.

    Attributes:
        out: `[R, L, C]`, contiguous; written.
        scale: one or two addends of its factor, each `[R or 1, 1, C]` or `[C]`.
        shift: likewise, of what is added to it.
        one: whether 1 is an addend of the factor, too.
        eps: added to the variance.
    """

    out: Tensor
    scale: Sequence[Tensor]
    shift: Sequence[Tensor]
    one: bool
    eps: float


@torch.library.custom_op("toprovar::linear_add", mutates_args=())
def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, gate: Sequence[Tensor]
) -> Tensor:
    """Return ``residual + (x W^T + bias) * sum(gate)``.

    On CUDA, in half precision, the product is dealt out in parts where that is faster (`split_product.py`),
    and one kernel adds up the parts in float32 and rounds once. Elsewhere the operators of a model, bit for
    bit.

    Args:
        x: `[R, L, K]`.
        weight: `[C, K]`.
        bias: `[C]`.
        residual: `[R, L, C]`.
        gate: none, or one or two factors to be added, each `[R or 1, 1, C]` or `[C]`.

    Returns:
        `[R, L, C]`, contiguous.
    """
    operands = _Operands.of(x, weight, bias, residual, gate)
    if operands is None:
        return _added(x, weight, bias, residual, gate).contiguous()
    out = operands.empty()
    operands.launch(out)
    return out


@torch.library.custom_op("toprovar::linear_add_norm", mutates_args=())
def linear_add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    gate: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    one: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The sum of `linear_add`, and its norm over channels times ``one + sum(scale)`` plus ``sum(shift)``.

    Args:
        x: `[R, L, K]`.
        weight: `[C, K]`.
        bias: `[C]`.
        residual: `[R, L, C]`.
        gate: as `linear_add`.
        scale: one or two factors of the norm to be added, each `[R or 1, 1, C]` or `[C]`.
        shift: likewise, of what is added to it.
        one: whether 1 is added to the factors.
        eps: added to the variance.

    Returns:
        The sum and its norm, each `[R, L, C]`, contiguous.
    """
    operands = _Operands.of(x, weight, bias, residual, gate, scale, shift)
    if operands is None:
        added = _added(x, weight, bias, residual, gate)
        return added.contiguous(), _norm(added, scale, shift, one, eps).contiguous()
    out, normed = operands.empty(), operands.empty()
    operands.launch(out, norm=WantedNorm(normed, scale, shift, one, eps))
    return out, normed


@torch.library.custom_op("toprovar::linear_add_rows", mutates_args=("hidden",))
def linear_add_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    gate: Sequence[Tensor],
    hidden: Tensor,
    keep: Tensor,
) -> None:
    """Write the sum of `linear_add` to rows of a hidden state.

    Args:
        x: `[R, K, inputs]`, of K tokens.
        weight: `[C, inputs]`.
        bias: `[C]`.
        residual: `[R, K, C]`.
        gate: as `linear_add`.
        hidden: `[R, L, C]`; its rows ``keep`` are written.
        keep: `[R, K]` int64, the rows of a batch row all different.
    """
    operands = _Operands.of(x, weight, bias, residual, gate)
    fits = hidden.dtype == residual.dtype and hidden.dim() == 3 and hidden.stride(2) == 1
    if operands is None or not fits:
        rows = torch.arange(len(keep), device=keep.device).unsqueeze(1)
        hidden[rows, keep] = _added(x, weight, bias, residual, gate)
        return
    operands.launch(hidden, keep=keep)


@linear_add.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, gate: Sequence[Tensor]) -> Tensor:
    return _added(x, weight, bias, residual, gate).contiguous()


@linear_add_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    gate: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    one: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    added = _added(x, weight, bias, residual, gate)
    return added.contiguous(), _norm(added, scale, shift, one, eps).contiguous()


@linear_add_rows.register_fake
def _(*operands: object) -> None:
    pass


def _added(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, gate: Sequence[Tensor]
) -> Tensor:
    update = F.linear(x, weight, bias)
    return residual + (update * _sum(gate) if gate else update)


def _norm(x: Tensor, scale: Sequence[Tensor], shift: Sequence[Tensor], one: bool, eps: float) -> Tensor:
    width = x.shape[-1:]
    if not one and len(scale) == len(shift) == 1 and scale[0].dim() == shift[0].dim() == 1:
        return F.layer_norm(x, width, scale[0], shift[0], eps)
    factor = 1 + _sum(scale) if one else _sum(scale)
    return F.layer_norm(x, width, eps=eps) * factor + _sum(shift)


def _sum(addends: Sequence[Tensor]) -> Tensor:
    return addends[0] if len(addends) == 1 else addends[0] + addends[1]


class _Operands:
    """Operands that the kernel takes."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, gate: Sequence[Tensor]
    ) -> None:
        self.x, self.weight, self.bias, self.residual, self.gate = x, weight, bias, residual, gate

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        gate: Sequence[Tensor],
        *modulations: Sequence[Tensor],
    ) -> _Operands | None:
        """The operands, or None for what the kernel does not take."""
        factors = [*gate, *(each for addends in modulations for each in addends)]
        tensors = [x, weight, residual, *factors, *([] if bias is None else [bias])]
        fits = (
            weight.is_cuda
            and has_triton()
            and weight.dtype in KERNEL_DTYPES
            and all(each.dtype == weight.dtype and each.device == weight.device for each in tensors)
            and x.dim() == residual.dim() == 3
            and x.shape[:2] == residual.shape[:2]
            and residual.shape[2] == weight.shape[0] <= WIDEST
            and residual.stride(2) == 1
            and all(_modulates(each, residual) for each in factors)
            and (bias is None or _modulates(bias, residual))
            and len(gate) <= 2
            and all(1 <= len(addends) <= 2 for addends in modulations)
        )
        return cls(x, weight, bias, residual, gate) if fits else None

    def empty(self) -> Tensor:
        """A tensor for a result."""
        return self.residual.new_empty(self.residual.shape)

    def launch(self, out: Tensor, keep: Tensor | None = None, norm: WantedNorm | None = None) -> None:
        """Compute the product and run the kernel, whose operands these are."""
        from . import triton_add_norm

        rows = self.x.reshape(-1, self.x.shape[-1])
        with torch.cuda.device(self.weight.device):
            sums, bias = in_parts(rows, self.weight), self.bias
            if sums is None:
                sums, bias = F.linear(rows, self.weight, self.bias)[None], None
            triton_add_norm.launch(sums, bias, self.residual, self.gate, out, keep, norm)


def _modulates(factor: Tensor, residual: Tensor) -> bool:
    """Whether a tensor is `[C]` or `[R or 1, 1, C]`, without gaps between channels."""
    rows, _, width = residual.shape
    shapes = ((width,), (1, 1, width), (rows, 1, width))
    return tuple(factor.shape) in shapes and factor.stride(-1) == 1
