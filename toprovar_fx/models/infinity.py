"""The Infinity transformer (Han et al. 2024, arXiv 2412.04431): ``forward`` is one scale step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ScheduleError
from ..schedules import Schedule
from .attention import BlockCausalAttend, CachedAttend, TextPool
from .block import NORM_EPS, Block, BlockChunk, modulate
from .cache import KVCache
from .code_embedding import CodeEmbedding, embedding_of
from .configs import InfinityConfig
from .initialise import initialise
from .rope import angles_of, rope_table
from .text import TextContext, padding_mask


class SharedAdaLin(nn.Linear):
    """Linear map from the pooled text to the six modulation vectors shared by all blocks."""

    def forward(self, cond: Tensor) -> Tensor:
        """Map ``[R, C]`` to ``[R, 1, 6, C]``."""
        return super().forward(cond).unflatten(-1, (1, 6, -1))


class HeadNorm(nn.Module):
    """Modulation of the last normalisation."""

    def __init__(self, width: int) -> None:
        """Create the map from the pooled text to scale and shift."""
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, cond: Tensor) -> Tensor:
        """Map ``[R, C]`` to scale and shift ``[R, 1, 2, C]``."""
        return self.ada_lin(cond).unflatten(-1, (1, 2, -1))


class TextPoolForStart(nn.Module):
    """Wrapper that gives the text pool its official parameter names."""

    def __init__(self, config: InfinityConfig) -> None:
        """Create the pool of ``config``."""
        super().__init__()
        self.ca = TextPool(config.text_channels, config.width, config.text_pool_heads)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Pool ``[R, T, text_channels]`` to ``[R, C]``."""
        return self.ca(text, mask)


class Infinity(nn.Module):
    """Infinity transformer with the official parameter names.

    A generation is: ``prepare_text`` once, then for every scale ``embed_first`` or ``embed_scale``,
        ``forward``,
    sampling (``toprovar_fx.sampling``). ``torch.compile(model)`` compiles ``forward``; the other methods are
    called on the original module.

    Attributes:
        config: sizes.
        schedule: the scale schedule set last, or None.
    """

    rope: Tensor

    def __init__(self, config: InfinityConfig) -> None:
        """Create the modules of ``config`` with the initialisation for training from scratch."""
        super().__init__()
        width = config.width
        self.config = config
        self.schedule: Schedule | None = None
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_maxlen, config.text_channels))
        self.text_norm = nn.RMSNorm(config.text_channels, eps=NORM_EPS)
        self.text_proj_for_sos = TextPoolForStart(config)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.lvl_embed = nn.Embedding(config.levels, width)
        self.word_embed = nn.Linear(config.bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), SharedAdaLin(width, 6 * width))
        per_chunk = config.depth // config.block_chunks
        self.block_chunks = nn.ModuleList(
            BlockChunk([Block(config) for _ in range(per_chunk)]) for _ in range(config.block_chunks)
        )
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, 2 * config.bits)
        # On the CPU even under a meta device context: no checkpoint fills it, set_schedule does.
        empty = torch.empty(1, 1, 0, config.head_dim // 2, 2, device="cpu")
        self.register_buffer("rope", empty, persistent=False)
        initialise(self)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.pos_start.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.pos_start.device

    def blocks(self) -> Iterator[Block]:
        """Iterate over the blocks in order."""
        for chunk in self.block_chunks:
            yield from cast("Iterable[Block]", chunk.module)

    def set_schedule(self, schedule: Schedule) -> None:
        """Build the rotation table of ``schedule``; ``forward`` then runs its scales.

        Raises:
            ScheduleError: more scales than the model has scale embeddings.
        """
        if len(schedule) > self.config.levels:
            raise ScheduleError(
                f"schedule of {len(schedule)} scales: the model has {self.config.levels} levels"
            )
        if schedule != self.schedule or self.rope.device != self.device:
            self.schedule = schedule
            self._build_rope()

    def prepare_text(self, features: Tensor, lengths: Tensor) -> TextContext:
        """Compute what depends on the text alone.

        Args:
            features: text features ``[R, T, text_channels]``; ``T`` may be padded.
            lengths: valid tokens of each row, ``[R]``, each at least 1.
        """
        text = self.text_norm(features.to(self.dtype))
        mask = padding_mask(lengths, features.shape[1], text.dtype)
        cond = self.text_proj_for_sos(text, mask)
        text = self.text_proj_for_ca(text)
        keys, values = zip(*(block.ca.text_kv(text) for block in self.blocks()), strict=True)
        return TextContext(
            cond=cond,
            gss=self.shared_ada_lin(cond),
            head_modulation=self.head_nm(cond),
            keys=torch.stack(keys),
            values=torch.stack(values),
            mask=mask,
        )

    def unconditional(self, features: Tensor, drop: Tensor) -> Tensor:
        """Replace the features of the rows where ``drop [R]`` is True by the learned unconditional text.

        It keeps the length of the prompt it replaces, as in training of the official models.
        """
        learned = self.cfg_uncond[: features.shape[1]].to(features.dtype)
        return torch.where(drop[:, None, None], learned, features)

    def embed_first(self, context: TextContext) -> Tensor:
        """Return the input of scale 0, ``[R, 1, C]``: pooled text, start position and level 0."""
        return context.cond[:, None] + self.pos_start + self.lvl_embed.weight[0]

    def embed_scale(self, codes: Tensor, scale: int) -> Tensor:
        """Embed the code sum resized to ``scale`` >= 1, ``[R, L, bits]`` -> ``[R, L, C]``."""
        return self.word_embed(codes.to(self.dtype)) + self.lvl_embed.weight[scale]

    def code_embedding(self) -> CodeEmbedding | None:
        """What ``embed_scale`` computes, for who records it; None where it is not that alone."""
        if type(self).embed_scale is not Infinity.embed_scale or "embed_scale" in vars(self):
            return None
        found = embedding_of(self.word_embed, self.lvl_embed)
        return found if found is not None and found.weight.dtype == self.dtype else None

    def forward(self, hidden: Tensor, context: TextContext, cache: KVCache, end: int) -> Tensor:
        """Run one scale.

        Args:
            hidden: embedded tokens of the scale, ``[R, L, C]``.
            context: the text.
            cache: K/V of the earlier scales; slots ``end - L .. end - 1`` are written.
            end: tokens cached after this scale.

        Returns:
            Logits ``[R, L, 2 * bits]``; entries ``2 i`` and ``2 i + 1`` are bit i being 0 (-1) and 1 (+1).
        """
        start = end - hidden.shape[1]
        angles = angles_of(self.rope[:, :, start:end])
        layers = zip(self.blocks(), cache.keys, cache.values, *context.by_layer(), strict=True)
        for block, keys, values, *text in layers:
            attend = CachedAttend(keys, values, start, end)
            hidden = block(hidden, context.gss, *text, context.mask, angles, attend)
        return self._logits(hidden, context)

    def forward_train(
        self, inputs: Sequence[Tensor], context: TextContext, *, merged_tokens: int = 130
    ) -> Tensor:
        """Run scales ``0 .. len(inputs)`` at once by teacher forcing.

        Args:
            inputs: for scales 1, 2, ...: the code sum resized to that scale, ``[R, L_s, bits]``; may be
                empty.
            context: the text, with gradient.
            merged_tokens: scales that end within this many tokens share one masked attention call.

        Returns:
            Logits of all these scales, concatenated: ``[R, L_0 + ... , 2 * bits]``.

        Raises:
            ScheduleError: no schedule is set, or the inputs are not those of its scales.
        """
        schedule = self._schedule_of(inputs)
        embedded = [self.embed_first(context)]
        embedded += [self.embed_scale(codes, scale) for scale, codes in enumerate(inputs, start=1)]
        hidden = torch.cat(embedded, dim=1)
        ends = schedule.ends[: len(embedded)]
        angles = angles_of(self.rope[:, :, : ends[-1]])
        attend = BlockCausalAttend(ends, merged_tokens, hidden.device)
        for block, *text in zip(self.blocks(), *context.by_layer(), strict=True):
            hidden = block(hidden, context.gss, *text, context.mask, angles, attend)
        return self._logits(hidden, context)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Infinity:
        """Move or cast the model; the rotation table stays float32, whatever the weights become."""
        super()._apply(fn, recurse)
        self._build_rope()
        return self

    def _build_rope(self) -> None:
        if self.schedule is not None:
            self.rope = rope_table(self.schedule, self.config.head_dim, self.config.rope_grid, self.device)

    def _logits(self, hidden: Tensor, context: TextContext) -> Tensor:
        scale, shift = context.head_modulation.unbind(2)
        return self.head(modulate(hidden, scale, shift))

    def _schedule_of(self, inputs: Sequence[Tensor]) -> Schedule:
        if self.schedule is None:
            raise ScheduleError("no schedule is set: call set_schedule first")
        given = [codes.shape[1] for codes in inputs]
        expected = list(self.schedule.tokens[1 : 1 + len(inputs)])
        if given != expected:
            raise ScheduleError(
                f"inputs of {given} tokens: expected {expected} for scales 1 .. {len(inputs)}"
            )
        return self.schedule
