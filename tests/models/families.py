"""Step models put together from interchangeable parts: block layouts, positions, and ways to keep a cache.

Layers are one code, for the models and for the reference, `plainly`; caches (`family_caches.py`) are two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toprovar_fx.schedules import Schedule

from .family_caches import DEPTH, HEAD, HEADS, WIDTH, Joined, PlainCache, Sliced
from .subjects import State, Subject

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


# Positions: tables [P, ...] of all tokens; a layer gets the rows of its tokens, [L, ...] or [R, K, ...].


class Absolute:
    def table(self, tokens: int) -> Tensor:
        return torch.randn(tokens, WIDTH)

    def stream(self, x: Tensor, table: Tensor) -> Tensor:
        return x + table

    def turn(self, x: Tensor, table: Tensor) -> Tensor:
        return x


class HalfSplit(Absolute):
    """RoPE of pairs (i, i + E / 2); the table holds cosines and sines."""

    def table(self, tokens: int) -> Tensor:
        angles = torch.randn(tokens, HEAD // 2).repeat(1, 2)
        return torch.stack((angles.cos(), angles.sin()), -1)

    def stream(self, x: Tensor, table: Tensor) -> Tensor:
        return x

    def turn(self, x: Tensor, table: Tensor) -> Tensor:
        cos, sin = table.unsqueeze(-4).unbind(-1)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin


class Interleaved(HalfSplit):
    """RoPE of pairs (2i, 2i + 1) by strided slices."""

    def table(self, tokens: int) -> Tensor:
        angles = torch.randn(tokens, HEAD // 2)
        return torch.stack((angles.cos(), angles.sin()), -1)

    def turn(self, x: Tensor, table: Tensor) -> Tensor:
        cos, sin = table.unsqueeze(-4).unbind(-1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Complex(Interleaved):
    """The same in complex numbers."""

    def table(self, tokens: int) -> Tensor:
        return torch.polar(torch.ones(tokens, HEAD // 2), torch.randn(tokens, HEAD // 2))

    def turn(self, x: Tensor, table: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], HEAD // 2, 2))
        return torch.view_as_real(pairs * table.unsqueeze(-3)).flatten(-2).type_as(x)


# Block layouts: attention and feed-forward around a residual stream.


class Layer(nn.Module):
    """Pre-norm with LayerNorm and SwiGLU."""

    position: Absolute

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def attention(self, x: Tensor, table: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.position.turn(q, table), self.position.turn(k, table), v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), table, attend)
        return x + self.feed(self.norm2(x))


class PostNorm(Layer):
    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, table, attend))
        return self.norm2(x + self.feed(x))


class Parallel(Layer):
    """One norm, attention and a GeGLU side by side, as one update."""

    def feed(self, x: Tensor) -> Tensor:
        gate, up = torch.cat((self.gate(x), self.up(x)), -1).chunk(2, -1)
        return self.down(F.gelu(gate, approximate="tanh") * up)

    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + self.attention(y, table, attend) + self.feed(y)


class RootMeanSquare(Layer):
    """RMSNorm written by hand in float32, and layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.scales = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(2, WIDTH))

    def rms(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.gain

    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        x = x + self.scales[0] * self.attention(self.rms(x), table, attend)
        return x + self.scales[1] * self.feed(F.rms_norm(x, (WIDTH,), self.gain))


class Modulated(Layer):
    """AdaLN: shift, scale and gate per sample, [R, 1, C] each, from a vector per sample and one shared."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.randn(1, 6, WIDTH)), nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        parts = (self.own(F.silu(cond)).unflatten(-1, (6, WIDTH)) + self.shared).unsqueeze(1).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = F.layer_norm(x, (WIDTH,)) * (1 + scale1) + shift1
        x = torch.addcmul(x, gate1, self.attention(y, table, attend))
        y = F.layer_norm(x, (WIDTH,)).mul(scale2.add(1)).add_(shift2)
        return x + self.feed(y).mul_(gate2)


class HalfPrecision(Layer):
    """A bfloat16 stream, normalised in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def wide(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (WIDTH,), norm.weight.float(), norm.bias.float()).to(x.dtype)

    def forward(self, x: Tensor, table: Tensor, attend: Attend, cond: Tensor) -> Tensor:
        x = x + self.attention(self.wide(self.norm1, x), table.to(x.dtype), attend)
        return x + self.feed(self.wide(self.norm2, x))


class Step(nn.Module):
    """A scale step of `DEPTH` layers: hidden [R, L, C], cond [R, C] -> logits."""

    def __init__(self, layer: type[Layer], position: Absolute, cache: Joined | Sliced) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(DEPTH))
        for each in self.layers:
            each.position = position
        self.position, self.cache = position, cache
        self.register_buffer("table", position.table(256), persistent=False)
        self.head = nn.Linear(WIDTH, 5)
        # Deviations must not die out on the way to the logits.
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, hidden: Tensor, cond: Tensor, store: Any, end: int) -> Tensor:
        end = self.cache.end(store, hidden.shape[1], end)
        table = self.table[end - hidden.shape[1] : end]
        x = self.position.stream(hidden, table)
        for at, layer in enumerate(self.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, at: int = at) -> Tensor:
                return self.cache.attend(store, at, end, q, k, v)

            x = layer(x, table, attend, cond)
        return self.head(x.float())


@dataclass
class Store:
    """What a generation keeps: a vector per sample, and the caches."""

    cond: Tensor
    rows: Any


class Family(Subject):
    """One combination of parts."""

    def __init__(self, layer: type[Layer], position: Absolute, cache: Joined | Sliced) -> None:
        torch.manual_seed(0)
        self.name = "-".join((layer.__name__, type(position).__name__, type(cache).__name__))
        self.model = Step(layer, position, cache).eval()
        self.width, self.layers = WIDTH, DEPTH

    def state(self, images: int, schedule: Schedule) -> State:
        source = torch.Generator().manual_seed(9)
        cond = torch.randn(2 * images, WIDTH, generator=source)
        return State(Store(cond, self.model.cache.new(self.parameter, 2 * images, schedule.ends[-1])))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        return hidden.clone(), state.cache.cond, state.cache.rows, end


def plainly(
    subject: Family,
    keeps: Mapping[tuple[int, int], Tensor],
    schedule: Schedule,
    images: int = 1,
    cached: Literal["kept", "all"] = "kept",
    stay: Mapping[tuple[int, int], Tensor] | None = None,
) -> list[Tensor]:
    """Logits of a generation that keeps the tokens `keeps[scale, layer]` [R, K], all elsewhere; K = 0 skips.

    A token that a layer does not compute leaves it as it came. Its keys and values are there for others with
    `cached="all"` and do not exist otherwise. After scale s, head h of row r of a cache keeps the
    rows `stay[s, layer][r, h]`.
    """
    model, cond = subject.model, subject.state(images, schedule).cache.cond
    caches = [PlainCache() for _ in range(DEPTH)]
    logits = []
    with torch.inference_mode():
        for scale, end in enumerate(schedule.ends):
            table = model.table[end - schedule.tokens[scale] : end]
            x = model.position.stream(subject.hidden(images, scale, schedule), table)
            for at, layer in enumerate(model.layers):
                keep = keeps.get((scale, at))
                if keep is None:
                    x = layer(x, table, caches[at].attend, cond)
                elif keep.shape[1]:
                    row = torch.arange(len(x))[:, None]
                    if cached == "kept":
                        some = layer(x[row, keep], table[keep], caches[at].attend, cond)
                    else:
                        some = layer(x, table, caches[at].attend, cond)[row, keep]
                    x = x.clone()
                    x[row, keep] = some
                if stay and (scale, at) in stay:
                    caches[at].keep(stay[scale, at])
            logits.append(model.head(x.float()))
    return logits
