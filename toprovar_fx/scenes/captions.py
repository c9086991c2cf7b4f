"""Captions of scenes, with randomly dropped attributes and paraphrases, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from . import grammar
from . import scene as sc
from .hashing import image_keys, uniform
from .scene import MAX_OBJECTS, SceneBatch
from .vocab import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, SHAPES, TEXTURES, WORD_IDS, decode_ids, word_ids

# How often a caption of drop=True ...
_SAYS_PICTURE = 0.08
_SAYS_COLOURS = 0.72
_FORGETS_ONE_COLOUR = 0.06
_SAYS_TEXTURES = 0.35
_SAYS_PLAIN = 0.4  # of the plain objects, in a caption that names textures
_SAYS_BACKGROUND = 0.35
_SAYS_RELATION = 0.6
_SAYS_ONE = 0.05
_SAYS_ALL_ANDS = 0.5


def _table(words: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor(word_ids(words), device=device)


def _links(scenes: SceneBatch, said: Tensor, inverse: Tensor, long_form: Tensor, all_ands: Tensor) -> Tensor:
    """Choose the link after each of the first three spoken objects, int64 [B, 3] into ``grammar.LINKS``."""
    left = torch.where(long_form, grammar.TO_LEFT, grammar.LEFT)
    right = torch.where(long_form, grammar.TO_RIGHT, grammar.RIGHT)
    beside = torch.where(inverse, right, left)
    stacked = torch.where(inverse, grammar.BELOW, grammar.ABOVE)
    relation = torch.where(scenes.relation == 0, beside, stacked)
    index = torch.arange(MAX_OBJECTS - 1, device=said.device)
    last = index == scenes.n[:, None] - 2
    links = torch.where(last | all_ands[:, None], grammar.AND, grammar.NOTHING)
    return torch.where(said[:, None] & (index == 0), relation[:, None], links)


def caption_ids(scenes: SceneBatch, *, seed: int, drop: bool = True) -> tuple[Tensor, Tensor]:
    """Describe scenes; every object is mentioned.

    Two objects without a relation, and lists, are told in reading order (left to right, top to bottom). A
    relation may be told from either object: "a circle left of a star" or "a star right of a circle".

    Args:
        scenes: B scenes.
        seed: Chooses what is dropped and how it is said; caption ``i`` depends on ``seed`` and ``i``.
        drop: False names all attributes ("plain" aside) and the relation, in one fixed phrasing.

    Returns:
        ``ids`` int64 ``[B, MAX_WORDS]``, 0 is padding, and ``lengths`` int64 ``[B]``, on the scenes' device.

    Raises:
        SeedError: ``seed`` is out of range.
    """
    return captions_from_keys(scenes, image_keys(seed, len(scenes), scenes.n.device), drop=drop)


def captions_from_keys(scenes: SceneBatch, keys: Tensor, *, drop: bool = True) -> tuple[Tensor, Tensor]:
    """Describe scenes as `caption_ids` does, with keys of `hashing.image_keys`, int64 ``[B]``, for a seed."""
    device = scenes.n.device
    coin = uniform(keys, 40, 9)
    each = uniform(keys, 41, 2 * MAX_OBJECTS)
    counted = scenes.kind == sc.COUNT
    related = scenes.relation >= 0
    remembered = each[:, :MAX_OBJECTS] >= _FORGETS_ONE_COLOUR
    says_colour = ((coin[:, 0:1] < _SAYS_COLOURS) & remembered) | (not drop)
    says_texture = (coin[:, 1:2] < _SAYS_TEXTURES) | (not drop)
    says_plain = (each[:, MAX_OBJECTS:] < _SAYS_PLAIN) & drop
    says_background = (coin[:, 2] < _SAYS_BACKGROUND) | (not drop)
    says_picture = (coin[:, 3] < _SAYS_PICTURE) & drop
    says_relation = related & ((coin[:, 4] < _SAYS_RELATION) | (not drop))
    inverse = says_relation & (coin[:, 5] < 0.5) & drop
    long_form = (coin[:, 6] < 0.35) & drop
    all_ands = (coin[:, 7] < _SAYS_ALL_ANDS) & drop
    says_one = (coin[:, 8] < _SAYS_ONE) & drop

    # An equal group is one spoken object with a number and a plural.
    slot = torch.arange(MAX_OBJECTS, device=device)
    spoken = slot < torch.where(counted, 1, scenes.n)[:, None]
    order = torch.where(inverse[:, None] & (slot < 2), 1 - slot, slot)
    looks = (scenes.shape, scenes.colour, scenes.texture)
    shape, colour, texture = (field.gather(1, order) for field in looks)

    number = _table(NUMBERS, device)[scenes.n - 1]
    article = torch.where(says_one, WORD_IDS["one"], WORD_IDS["a"])
    determiner = torch.where(counted, number, article)[:, None].expand(-1, MAX_OBJECTS)
    texture_said = says_texture & ((texture > 0) | says_plain)
    noun = torch.where(counted[:, None], _table(PLURALS, device)[shape], _table(SHAPES, device)[shape])
    unsaid = torch.full_like(noun, grammar.UNSAID)
    objects = torch.stack(
        [
            determiner,
            torch.where(texture_said, _table(TEXTURES, device)[texture], unsaid),
            torch.where(says_colour, _table(COLOURS, device)[colour], unsaid),
            noun,
        ],
        dim=2,
    )
    objects = torch.where(spoken[:, :, None], objects, unsaid[:, :, None])

    link_index = _links(scenes, says_relation, inverse, long_form, all_ands)
    links = torch.tensor(grammar.LINKS, device=device)[link_index]
    links = torch.where(spoken[:, 1:, None], links, grammar.UNSAID)
    # Object and the link behind it, in turn; the last object has no link.
    links = torch.cat([links, torch.full_like(links[:, :1], grammar.UNSAID)], dim=1)
    body = torch.cat([objects, links], dim=2).flatten(1)

    prefix = torch.tensor(grammar.PREFIX, device=device).expand(len(scenes), -1)
    prefix = torch.where(says_picture[:, None], prefix, grammar.UNSAID)
    place = torch.full_like(scenes.background, WORD_IDS["on"])
    ending = torch.stack([place, _table(BACKGROUNDS, device)[scenes.background]], dim=1)
    ending = torch.where(says_background[:, None], ending, grammar.UNSAID)
    return grammar.compact(torch.cat([prefix, body, ending], dim=1))


def caption_text(scenes: SceneBatch, i: int) -> str:
    """Return the complete caption of scene ``i``: all attributes, no paraphrase."""
    ids, _ = caption_ids(scenes[i : i + 1], seed=0, drop=False)
    return decode_ids(ids[0].tolist())
