"""Tensors in memory: whose storage they share, whether they were written since, copies of many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Copies of more bytes take longer than their launches.
_LARGE = 1 << 20
# The kernel for many tensors took 5 to 11 us for two or three (H200): a block of it gets 65,536 numbers.
_FEW = 4


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory, shared by its views, for as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def version_of(tensor: torch.Tensor) -> int | None:
    """A number that grows whenever a tensor is written to; None for tensors of inference mode."""
    return None if tensor.is_inference() else tensor._version


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy tensors to others of equal shapes and dtypes: a few one by one, many in few launches."""
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = by_dtype.setdefault(target.dtype, ([], []))
        group[0].append(target)
        group[1].append(source)
    for own, theirs in by_dtype.values():
        if len(own) > _FEW:
            torch._foreach_copy_(own, theirs)
            continue
        for target, source in zip(own, theirs, strict=True):
            target.copy_(source)


def clone_all(values: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of the tensors among many values, the small ones in few launches; the others as they are."""
    made, targets, sources = list(values), [], []
    for at, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            if value.nbytes > _LARGE:
                made[at] = value.clone()
            else:
                made[at] = torch.empty_like(value)
                targets.append(made[at])
                sources.append(value)
    copy_all(targets, sources)
    return tuple(made)
