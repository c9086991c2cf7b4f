"""Tensors in memory: whose storage they share, whether they were written since, copies of many at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory, shared by its views, for as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def version_of(tensor: torch.Tensor) -> int | None:
    """A number that grows whenever a tensor is written to; None for tensors of inference mode."""
    return None if tensor.is_inference() else tensor._version


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy many tensors of equal shapes and dtypes, in few launches."""
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = by_dtype.setdefault(target.dtype, ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in by_dtype.values():
        torch._foreach_copy_(*group)
