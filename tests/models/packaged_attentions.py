"""Step models that attend by operators of libraries, [R, L, H, E], in the manner of `attentions.py`."""

from __future__ import annotations

from torch import Tensor

from .attentions import Attending
from .stand_ins import flash_attn_forward, flash_attn_func, memory_efficient_attention


class LibraryLayout(Attending):
    heads_first = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return self.mix(q, *self.remember(k, v, keys, values, end), end)


class Flash(LibraryLayout):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(q, k, v)


class FlashGrouped(LibraryLayout):
    kv_heads, scale = 2, 0.4

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(q, k, v, softmax_scale=0.4, causal=False, window_size=[-1, -1])


class FlashOperator(LibraryLayout):
    """What flash-attn's own wrapper leaves in a graph: an operator with several results."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_forward(q, k, v, 0.0, 0.5, False)[0]


class FlashOverHeadsFirstCache(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Xformers(LibraryLayout):
    scale = 0.2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return memory_efficient_attention(q, k, v, scale=0.2)


class XformersBias(LibraryLayout):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        bias = self.table[None, :, end - q.shape[1] : end, :end].expand(q.shape[0], -1, -1, -1)
        return memory_efficient_attention(q, k, v, attn_bias=bias)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


LIBRARIES = (Flash, FlashGrouped, FlashOperator, FlashOverHeadsFirstCache, Xformers, XformersBias)
