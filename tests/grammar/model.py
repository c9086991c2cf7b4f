"""A drawn model: blocks put together from the parts, a scale step around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parts_attention import Attend, MixedAttention
from .parts_branches import CrossAttention, FeedForward, guide
from .parts_caches import Cache, remember
from .parts_mixers import Mixer
from .parts_norms import AdaLN, Finish, make_norm, modulate
from .parts_positions import PositionTable, Rope
from .parts_projections import Projections, QKNorm
from .spec import ATTENTION_MIXERS, BlockSpec, CaseSpec


class SelfAttention(nn.Module):
    """x [R, L, C] to [R, L, C] over the cache."""

    def __init__(self, spec: BlockSpec, width: int, heads: int) -> None:
        super().__init__()
        key_heads, head_width = heads if spec.gqa == "none" else heads // 2, width // heads
        self.spec, self.tokens_first = spec, spec.layout == "tokens_first"
        self.projections = Projections(spec, width, heads, key_heads)
        self.norm = QKNorm(spec, heads, head_width)
        self.rope = Rope(spec.position, head_width, self.tokens_first) if "rope" in spec.position else None
        self.mixed = MixedAttention(spec) if spec.mixer in ATTENTION_MIXERS else None
        self.attend = Attend(spec, heads, key_heads, head_width)
        self.out = nn.Linear(width, width, bias=spec.bias)

    def forward(self, x: Tensor, cache: Cache, layer: int, start: int, end: int) -> Tensor:
        q, k, v = self.projections(x)
        q, k = self.norm(q, k)
        if self.rope is not None:
            q, k = self.rope(q, k, start, end)
        if self.mixed is not None:
            return self.out(self.mixed(q, k, v))
        k = remember(self.spec.cache, self.tokens_first, cache.keys, layer, k, start, end)
        v = remember(self.spec.cache, self.tokens_first, cache.values, layer, v, start, end)
        return self.out(self.attend(q, k, v, start, end))


# What follows self-attention, in order: methods of `Block`.
STAGES = ("attention_sum", "attention_norm", "cross_sum", "mlp_sum", "mlp_norm", "guidance")


@dataclass
class Given:
    """What a block is given besides tokens."""

    modulation: tuple[Tensor, ...] | None
    context: Tensor
    mask: Tensor


class Block(nn.Module):
    """One layer, in any placement of norms and with parallel or serial branches."""

    def __init__(self, spec: BlockSpec, width: int, heads: int, wide_sum: bool) -> None:
        super().__init__()
        self.spec, self.wide_sum = spec, wide_sum
        self.adaln = AdaLN(spec, width)
        self.norms = nn.ModuleList(make_norm(spec.norm, width) for _ in range(2))
        self.finish = nn.ModuleList(Finish(spec, width, branch) for branch in range(2))
        self.attention = SelfAttention(spec, width, heads)
        self.mlp = FeedForward(spec, width)
        self.cross = CrossAttention(spec, width, heads) if spec.cross != "none" else None
        self.table = PositionTable(width) if spec.position == "table" else None
        hidden_mixer = spec.mixer not in ("none", *ATTENTION_MIXERS)
        self.mixer = Mixer(spec.mixer, width) if hidden_mixer else None
        self.dtype = torch.float32

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        shared: Tensor,
        context: Tensor,
        mask: Tensor,
        cache: Cache,
        layer: int,
        start: int,
        end: int,
    ) -> Tensor:
        given = Given(self.adaln(condition, shared), context, mask)
        if self.table is not None:
            x = self.table(x, start, end)
        h = self.enter(x, given.modulation, 0)
        y = self.attention(self.mix(h, "attention"), cache, layer, start, end)
        x = self.attention_sum(x, h, y, given)
        for stage in STAGES[1:]:
            x = getattr(self, stage)(x, given)
        return x

    # From here on every token is alone (but for mixers), so the reference runs the same code on some of them.

    def enter(self, x: Tensor, modulation: Any, branch: int) -> Tensor:
        """Input of a branch; post-norm blocks take the stream as it is."""
        x = x.to(self.dtype)
        if self.spec.placement == "post":
            return x
        return modulate(self.norms[branch](x), modulation, branch)

    def mix(self, h: Tensor, where: str) -> Tensor:
        return h if self.mixer is None or self.spec.mixer_at != where else self.mixer(h)

    def attention_sum(self, x: Tensor, h: Tensor, y: Tensor, given: Given) -> Tensor:
        """Add the self-attention's result y, and that of parallel branches, to the stream; h entered it."""
        y = self.finish[0](y, given.modulation)
        if self.spec.branches == "parallel":
            y = y + self.finish[1](self.mlp(self.mix(h, "mlp")), given.modulation)
            if self.cross is not None:
                y = y + self._look(x, given)
        return add_to_stream(x, y, self.wide_sum)

    def attention_norm(self, x: Tensor, given: Given) -> Tensor:
        return self._settle(x, given, 0)

    def cross_sum(self, x: Tensor, given: Given) -> Tensor:
        if self.cross is None or self.spec.branches == "parallel":
            return x
        return add_to_stream(x, self._look(x, given), self.wide_sum)

    def mlp_sum(self, x: Tensor, given: Given) -> Tensor:
        if self.spec.branches == "parallel":
            return x
        y = self.mlp(self.mix(self.enter(x, given.modulation, 1), "mlp"))
        return add_to_stream(x, self.finish[1](y, given.modulation), self.wide_sum)

    def mlp_norm(self, x: Tensor, given: Given) -> Tensor:
        return x if self.spec.branches == "parallel" else self._settle(x, given, 1)

    def guidance(self, x: Tensor, given: Given) -> Tensor:
        return guide(x) if self.spec.guidance == "mixed" else x

    def _look(self, x: Tensor, given: Given) -> Tensor:
        """Cross-attention behind a norm of its own."""
        return self.cross(F.layer_norm(x.to(self.dtype), x.shape[-1:]), given.context, given.mask)

    def _settle(self, x: Tensor, given: Given, branch: int) -> Tensor:
        """The norm that follows a sum in post-norm blocks."""
        if self.spec.placement != "post":
            return x
        return modulate(self.norms[branch](x.to(self.dtype)), given.modulation, branch).to(x.dtype)


def add_to_stream(x: Tensor, y: Tensor, wide: bool) -> Tensor:
    """A residual sum, in the stream's type or through float64."""
    if wide:
        return (x.double() + y.double()).to(x.dtype)
    return x + y


class DrawnModel(nn.Module):
    """One scale step: hidden [R, L, C] to logits [R, L, 5], or to hidden states where the head is "none"."""

    def __init__(self, case: CaseSpec) -> None:
        super().__init__()
        self.case, width = case, case.width
        self.blocks = nn.ModuleList(
            Block(spec, width, case.heads, case.residual == "wide_sum") for spec in case.blocks
        )
        self.table = PositionTable(width) if case.entry == "table" else None
        self.shared = nn.Linear(width, 6 * width)
        self.modulation = nn.Linear(width, 2 * width) if case.head == "modulated" else None
        self.head = nn.Linear(width, 5) if case.head != "none" else None

    def forward(
        self, hidden: Tensor, condition: Tensor, context: Tensor, mask: Tensor, cache: Cache, end: int
    ) -> Tensor:
        start = end - hidden.shape[1]
        x = hidden if self.table is None else self.table(hidden, start, end)
        if self.case.residual == "wide_stream":
            x = x.double()
        shared = self.shared_modulation(condition)
        for layer, block in enumerate(self.blocks):
            x = block(x, condition, shared, context, mask, cache, layer, start, end)
        return self.leave(x, condition)

    def shared_modulation(self, condition: Tensor) -> Tensor:
        """[R, 1, 6, C], for the blocks of which each adds its own."""
        return self.shared(F.silu(condition)).view(condition.shape[0], 1, 6, -1)

    def leave(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.head is None:
            return x
        x = F.layer_norm(x.float(), x.shape[-1:])
        if self.modulation is not None:
            scale, shift = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self.head(x)
