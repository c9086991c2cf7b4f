"""Upstream attention with its keys and values in preallocated buffers.

What upstream does: `self.cached_k = torch.cat((self.cached_k, k), dim)` at every scale. The cache is a module
attribute that starts as None and grows, so a graph of it has one variant for None, copies everything that is
known at every scale, and changes addresses; a layer whose tokens are pruned gets a cache of its own length.
What happens here: the attention's own code runs with a stand-in for `self` whose `cached_k` and `cached_v`
are `CacheRows`, and with a `torch.cat` that, given one of those, writes the new rows into a buffer and
returns the rows so far. That is the preallocated cache that the backend knows how to prune
(`analysis/caches.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .rebinding import rebound, torch_with


class LayerState(NamedTuple):
    """What one layer needs at one scale; it travels in the place of the block's mask, None in inference.

    Attributes:
        keys, values: buffers with one row per token on the cached axis, or the `Probe`s of a trial run.
        end: tokens of all scales up to and including this one.
        rope: position tables of the layer: at the scale's own tokens, and at the first tokens; or None.
    """

    keys: Any
    values: Any
    end: int
    rope: tuple[Tensor, Tensor] | None = None


class CacheRows:
    """Stands in for a cached tensor: concatenating to it writes into the buffer."""

    def __init__(self, buffer: Tensor, end: int) -> None:
        self.buffer, self.end = buffer, end

    def append(self, new: Tensor, axis: int) -> Tensor:
        """Write the rows of this scale and return all rows so far."""
        if new.dtype != self.buffer.dtype:
            raise AdapterError(
                f"cache rows of {new.dtype}: expected {self.buffer.dtype}, as at the first scale"
            )
        front: tuple[slice, ...] = (slice(None),) * axis
        written = (*front, slice(self.end - new.shape[axis], self.end))
        known = (*front, slice(None, self.end))
        self.buffer[written] = new
        return self.buffer[known]


@dataclass
class Probe:
    """Stands in for a cached tensor in a trial run and notes what is appended.

    Attributes:
        shape, dtype, axis: of the rows, once they came; `axis` is the one that grows.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    axis: int = -1

    def append(self, new: Tensor, axis: int) -> Tensor:
        """Note the rows and return them: nothing is cached before."""
        self.shape, self.dtype, self.axis = tuple(new.shape), new.dtype, axis
        return new

    def buffer(self, rows: int, tokens: int, device: torch.device) -> Tensor:
        """A buffer for `tokens` tokens and one more, so that no slice of it ever equals the whole."""
        assert self.shape is not None
        shape = list(self.shape)
        shape[0], shape[self.axis] = rows, tokens + 1
        return torch.zeros(shape, dtype=self.dtype, device=device)


def _cat(tensors: tuple[Any, ...] | list[Any], dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """`torch.cat`, but rows appended to a cache go into its buffer."""
    if isinstance(tensors[0], (CacheRows, Probe)):
        rows: Tensor = tensors[0].append(tensors[1], dim)
        return rows
    return torch.cat(tensors, dim) if out is None else torch.cat(tensors, dim, out=out)


_TORCH = torch_with(cat=_cat, concat=_cat, concatenate=_cat)
_REPLACED = {torch: _TORCH, torch.cat: _cat, torch.concat: _cat}


def cached_code(attention: nn.Module) -> Callable[..., Any]:
    """The `forward` of an attention's class with the `torch.cat` of this module."""
    return rebound(type(attention).forward, _REPLACED)


class _CachedSelf:
    """Stands in for an attention module while its code runs once; everything else is the module's own."""

    def __init__(self, module: nn.Module, state: LayerState) -> None:
        self._module = module
        self.caching = True
        keys, values = state.keys, state.values
        self.cached_k = keys if isinstance(keys, Probe) else CacheRows(keys, state.end)
        self.cached_v = values if isinstance(values, Probe) else CacheRows(values, state.end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class CachedAttention(nn.Module):
    """An upstream self-attention that caches in buffers.

    Args:
        inner: the upstream module.
        code: `cached_code` of its class, shared by all layers.
    """

    def __init__(self, inner: nn.Module, code: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.code = inner, code

    def forward(self, x: Tensor, attn_bias: LayerState, *arguments: Any) -> Tensor:
        """Attend from x [R, L, C] to all tokens so far; the layer's state comes in the place of the mask."""
        result: Tensor = self.code(_CachedSelf(self.inner, attn_bias), x, None, *arguments)
        return result
