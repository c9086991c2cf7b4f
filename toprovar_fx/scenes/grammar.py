"""The sentence: fixed word slots, filled for a whole batch and compacted.

A caption is ``[a picture of] OBJECT [link OBJECT ...] [on BACKGROUND]`` where an object is an article or a
number, a texture, a colour and a shape, and a link is ``and``, nothing (a comma in writing) or a relation of
up to four words. A word that is not said has id -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .vocab import MAX_WORDS, PADDING, WORD_IDS, word_ids

UNSAID = -1

PREFIX = tuple(word_ids(("a", "picture", "of")))
LINK_WIDTH = 4


def link(*words: str) -> tuple[int, ...]:
    """Return a link of `LINK_WIDTH` slots, unused ones unsaid."""
    return (*word_ids(words), *(UNSAID,) * (LINK_WIDTH - len(words)))


NOTHING, AND, LEFT, RIGHT, ABOVE, BELOW, TO_LEFT, TO_RIGHT = range(8)
LINKS = (
    link(),
    link("and"),
    link("left", "of"),
    link("right", "of"),
    link("above"),
    link("below"),
    link("to", "the", "left", "of"),
    link("to", "the", "right", "of"),
)


def articles(slots: Tensor) -> Tensor:
    """Turn every ``a`` before ``orange`` in compacted ids ``[B, T]`` into ``an``."""
    following = torch.cat([slots[:, 1:], torch.full_like(slots[:, :1], PADDING)], dim=1)
    before_vowel = (slots == WORD_IDS["a"]) & (following == WORD_IDS["orange"])
    return torch.where(before_vowel, WORD_IDS["an"], slots)


def compact(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Close the gaps that unsaid words leave.

    Args:
        slots: int64 ``[B, W]`` word ids, W at least `MAX_WORDS`, `UNSAID` where a slot is silent.

    Returns:
        ``ids`` int64 ``[B, MAX_WORDS]`` padded with 0, and ``lengths`` int64 ``[B]``.
    """
    silent = slots < 0
    order = torch.sort(silent.to(torch.int8), dim=1, stable=True).indices
    ids = slots.gather(1, order).clamp_min(PADDING)[:, :MAX_WORDS]
    return articles(ids), (~silent).sum(dim=1)
