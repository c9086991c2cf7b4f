"""Tensors in memory: whose storage they share, whether they were written since, copies of many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any

import torch

_version, _dtype, _identity = attrgetter("_version"), attrgetter("dtype"), attrgetter("_cdata")

# Copies of more bytes take longer than their launches.
_LARGE = 1 << 20
# The kernel for many tensors took 5 to 11 us for two or three (H200): a block of it gets 65,536 numbers.
_FEW = 4


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory, shared by its views, for as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def storages_of(tensors: Iterable[torch.Tensor]) -> Iterator[int]:
    """`storage_of` each of many tensors."""
    return map(_identity, map(torch.Tensor.untyped_storage, tensors))


def may_overlap(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether some bytes of two tensors may be the same: those from the first of each to its last."""
    if storage_of(left) != storage_of(right):
        return False
    (first, last), (begin, end) = _extent(left), _extent(right)
    return first < end and begin < last


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its memory, in bytes."""
    begin = int(tensor.storage_offset()) * tensor.itemsize
    if not tensor.numel():
        return begin, begin
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.itemsize


def version_of(tensor: torch.Tensor) -> int | None:
    """A number that grows whenever a tensor is written to; None for tensors of inference mode."""
    return None if tensor.is_inference() else tensor._version


def versions_of(tensors: Sequence[torch.Tensor]) -> list[int | None]:
    """`version_of` each of many tensors."""
    try:
        return list(map(_version, tensors))
    except RuntimeError:  # one of them is of inference mode
        return [version_of(tensor) for tensor in tensors]


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy tensors to others of equal shapes and dtypes: a few one by one, many in few launches."""
    dtypes = list(map(_dtype, targets))
    for dtype in dict.fromkeys(dtypes):
        chosen = [each is dtype for each in dtypes]
        own, theirs = list(compress(targets, chosen)), list(compress(sources, chosen))
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
