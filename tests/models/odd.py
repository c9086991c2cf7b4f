"""Small step models that each do one thing under which rows must not be dropped."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toprovar_fx.schedules import Schedule

from .subjects import Lists, State, Subject

WIDTH, HEADS = 16, 2


class Plain(nn.Module):
    """Two pre-norm blocks with a cache; every part may be overridden. Nothing odd in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 3) / 4)
        self.table = nn.Parameter(torch.randn(256, WIDTH))
        self.register_buffer("places", torch.arange(256))

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        x = self.enter(hidden)
        for layer in range(2):
            x = self.block(x, layer, keys, values, end)
        return self.leave(x)

    def enter(self, hidden: Tensor) -> Tensor:
        return hidden

    def leave(self, x: Tensor) -> Tensor:
        return self.head(x)

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        rows, length, width = x.shape
        x = self.touch(x, end)
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x, (WIDTH,))))
        mixed = self.attend(q, k, v, keys[layer], values[layer], end)
        x = x + self.out[layer](mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp[layer](F.silu(self.feed(F.layer_norm(x, (WIDTH,)), end)))

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def touch(self, x: Tensor, end: int) -> Tensor:
        return x

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


class TableInBlock(Plain):
    """Not odd: a position table inside every block, to be gathered like any other."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + self.table[end - x.shape[1] : end]


class TableInHead(Plain):
    """Not odd: the second layer is of its own kind, and the head adds positions. `skips` may be set: L."""

    end = skips = 0

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        self.end = end
        return super().forward(hidden, keys, values, end)

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        if layer == 1 and x.shape[1] == self.skips:
            return x
        self.layer = layer
        return super().block(x, layer, keys, values, end)

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x.tanh() if self.layer else x

    def leave(self, x: Tensor) -> Tensor:
        return self.head(x + self.table[self.end - x.shape[1] : self.end])


class Parallel(Plain):
    """Both branches of a block read the same stream: it has no sublayers that follow each other."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        rows, length, width = x.shape
        y = F.layer_norm(x, (WIDTH,))
        mixed = self.attend(*self.heads(self.qkv[layer](y)), keys[layer], values[layer], end)
        out = self.out[layer](mixed.transpose(1, 2).reshape(rows, length, width))
        return x + (out + self.mlp[layer](F.silu(y)))


class TokenMean(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x - x.mean(1, keepdim=True)


class TokenSoftmax(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x.softmax(1)


class GlobalNorm(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x / x.abs().mean()


class Convolution(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.conv1d(x.transpose(1, 2), self.weight, padding=1).transpose(1, 2)


class GridConvolution(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        grid = x.transpose(1, 2).reshape(x.shape[0], WIDTH, -1, 1)
        return F.conv2d(grid, self.weight[..., None], padding=(1, 0)).flatten(2).transpose(1, 2)


class Roll(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.roll(x, 1, 1)


class Cumulative(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x.cumsum(1)


class Sorted(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x.sort(1).values


class Pooled(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.avg_pool1d(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2)


class TokenNorm(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2)


class Dropout(Plain):
    """Random in general; here all is dropped, so that results can be compared."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + F.dropout(x, 1.0, training=True)


class Noise(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + 0 * torch.randn_like(x)


class BatchMean(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return super().attend(q - q.mean(0, keepdim=True), k, v, keys, values, end)


class SwappedRows(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        first, second = k.chunk(2)
        return super().attend(q, torch.cat((second, first)), v, keys, values, end)


class Reflected(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        mixed = super().attend(q, k, v, keys, values, end)
        return mixed + mixed[:1]


class IntoTable(Plain):
    """Tokens are written into a value that has none."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        rows = self.table[end - x.shape[1] : end].expand(len(x), -1, -1).clone()
        return x + rows.mul_(x) + rows


class Widened(Plain):
    """The first block turns the stream into float64, in which it stays."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x.float(), (WIDTH,))))
        mixed = self.attend(q, k, v, keys[layer], values[layer], end)
        x = x.double() + self.out[layer](mixed.transpose(1, 2).flatten(2))
        return x + self.mlp[layer](F.silu(F.layer_norm(x.float(), (WIDTH,))))

    def leave(self, x: Tensor) -> Tensor:
        return self.head(x.float())


class LateRoll(Plain):
    """Mixes tokens at large scales alone, in a graph of their own."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.roll(x, 1, 1) if x.shape[1] > 30 else x


class GuidedInside(Plain):
    """Guidance between attention and feed-forward: what follows it runs on all tokens."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        first, second = x.chunk(2)
        return x + torch.cat((second, first))


class Guided(Plain):
    """Guidance between the layers: both halves of the batch go on with the same mixture."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        if layer == 1:
            half = x.shape[0] // 2
            mixed = 1.5 * x[:half] - 0.5 * x[half:]
            x = torch.cat((mixed, mixed))
        return super().block(x, layer, keys, values, end)


class TokenSlice(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + x[:, :1]


class TokenMixer(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + torch.matmul(x.transpose(1, 2), x).mean(1, keepdim=True)


class Unknown(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.special.i0e(x)


class Branch(Plain):
    """Graphs of their own among the block's nodes."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


class Merged(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.relu(x.reshape(-1, WIDTH)).view(x.shape)


class ShapeObject(Plain):
    """Passes a torch.Size around."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.relu(x).reshape(x.shape)


class LengthFactor(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x * (8.0 / x.shape[1])


class LengthInteger(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x * (x.shape[1] + 1)


class LengthInTable(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + torch.full((1, 1, WIDTH), 0.1 * x.shape[1])


class InPlace(Plain):
    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x, (WIDTH,))))
        mixed = self.attend(q, k, v, keys[layer], values[layer], end)
        return x.add_(self.out[layer](mixed.transpose(1, 2).flatten(2)))


class InPlaceSum(Plain):
    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x, (WIDTH,))))
        mixed = self.attend(q, k, v, keys[layer], values[layer], end)
        x += self.out[layer](mixed.transpose(1, 2).flatten(2))
        return x


class InPlaceByArgument(Plain):
    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x, (WIDTH,))))
        mixed = self.attend(q, k, v, keys[layer], values[layer], end)
        active = F.relu(x, inplace=True) if layer else F.silu(x, True)
        return x + self.out[layer](mixed.transpose(1, 2).flatten(2)) + self.mlp[layer](active)


class InPlaceView(Plain):
    def touch(self, x: Tensor, end: int) -> Tensor:
        x.transpose(1, 2).clamp_(-1, 1)
        return x


class Causal(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class NoAttention(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return q * k * v


class TextOnly(Plain):
    """Attention to something that does not depend on the tokens."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, keys[:, :, :3] + 1, values[:, :, :3] + 1)


class SecondStream(Plain):
    """A skip connection around both blocks."""

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        return super().forward(hidden, keys, values, end) + self.head(hidden)


class TwoAttentions(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        mixed = super().attend(q, k, v, keys, values, end)
        return F.scaled_dot_product_attention(mixed, k, v)


class NoResidual(Plain):
    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, k, v = self.heads(self.qkv[layer](F.layer_norm(x, (WIDTH,))))
        x = self.attend(q, k, v, keys[layer], values[layer], end).transpose(1, 2).flatten(2)
        return x.sigmoid() if layer else x.tanh()


class Grid(Plain):
    """Takes the token map [R, C, h, w] instead of tokens."""

    def enter(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(2).transpose(1, 2)


class OddSubject(Subject):
    """One of these modules; `grid` models take [R, C, L, 1]."""

    def __init__(self, kind: type[Plain]) -> None:
        torch.manual_seed(0)
        self.name, self.model = kind.__name__, kind().eval()
        self.width, self.layers = WIDTH, 2

    def state(self, images: int, schedule: Schedule) -> State:
        shape = (2 * images, HEADS, schedule.ends[-1] + 1, WIDTH // HEADS)
        keys, values = ([torch.zeros(shape) for _ in range(2)] for _ in range(2))
        return State(Lists(keys, values))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        if isinstance(self.model, Grid):
            hidden = hidden.transpose(1, 2).unsqueeze(-1)
        return hidden.clone(), state.keys, state.values, end
