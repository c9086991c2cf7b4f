from itertools import pairwise

import pytest
import torch

from toprovar_fx.errors import SeedError
from toprovar_fx.scenes import MAX_WORDS, caption_ids, caption_text, decode_ids, encode_prompt, sample_scenes
from toprovar_fx.scenes import scene as sc
from toprovar_fx.scenes.vocab import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, SHAPES, TEXTURES

BATCH = 3000


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(BATCH, device="cpu", seed=1)


@pytest.fixture(scope="module")
def texts(scenes):
    ids, _ = caption_ids(scenes, seed=2)
    return [decode_ids(row) for row in ids.tolist()]


def parse(text):
    """Read a caption back by another way than it was made: the objects as told, the links, the background."""
    text = text.removeprefix("a picture of ")
    text, _, background = text.partition(" on ")
    objects, links, link, current = [], [], [], {}
    for word in text.split():
        if word in SHAPES or word in PLURALS:
            shape = (SHAPES if word in SHAPES else PLURALS).index(word)
            objects.append({**current, "shape": shape, "plural": word in PLURALS})
            current, link = {}, []
        elif word in COLOURS:
            current["colour"] = COLOURS.index(word)
        elif word in TEXTURES:
            current["texture"] = TEXTURES.index(word)
        elif word in NUMBERS:
            current["number"] = NUMBERS.index(word) + 1
        elif word not in ("a", "an"):
            link.append(word)
            continue
        if objects and link:
            links.append(" ".join(link))
            link = []
    return objects, links, background


def test_captions_have_no_gaps_and_fit(scenes):
    ids, lengths = caption_ids(scenes, seed=2)
    assert ids.shape == (BATCH, MAX_WORDS) and ids.dtype == lengths.dtype == torch.int64
    position = torch.arange(MAX_WORDS)
    assert torch.equal(ids > 0, position < lengths[:, None])
    assert lengths.min() >= 2 and lengths.max() <= MAX_WORDS


def test_captions_are_prompts(texts):
    assert all(decode_ids(encode_prompt(text)) == text for text in texts)


def test_everything_a_caption_says_is_true(scenes, texts):
    for i, text in enumerate(texts):
        objects, links, background = parse(text)
        n, counted = int(scenes.n[i]), int(scenes.kind[i]) == sc.COUNT
        assert len(objects) == (1 if counted else n), text
        assert background in ("", BACKGROUNDS[int(scenes.background[i])])
        inverse = bool(links) and links[0] in ("right of", "to the right of", "below")
        order = [1, 0] if inverse else list(range(n))
        for spoken, slot in zip(objects, order, strict=False):
            assert spoken["plural"] == counted
            assert spoken.get("number", 1) == (n if counted else 1)
            for field in ("shape", "colour", "texture"):
                assert (
                    spoken.get(field, int(getattr(scenes, field)[i, slot])) == getattr(scenes, field)[i, slot]
                )
        if links and links[0] != "and":
            beside = links[0].split()[-2:] in (["left", "of"], ["right", "of"])
            assert int(scenes.relation[i]) == (0 if beside else 1), text


def test_articles(texts):
    words = [text.split() for text in texts]
    for sentence in words:
        for word, following in pairwise(sentence):
            assert (word == "an") == (word in ("a", "an") and following == "orange")


def test_every_phrase_occurs(texts):
    everything = " | ".join(texts)
    wanted = ("to the left of", "to the right of", " left of", " right of", "above", "below", " on grass")
    wanted += ("a picture of", "one ", "two ", "three ", "four ", "plain", "an orange")
    assert all(phrase in everything for phrase in wanted)
    assert {"a circle", "a star"} <= set(texts)
    assert any(text.count(" and ") == 1 and len(text.split()) == 5 for text in texts)  # "a circle and a star"


def test_relations_and_attributes_are_frequent(scenes, texts):
    two = [text for text, kind in zip(texts, scenes.kind.tolist(), strict=True) if kind == sc.TWO]
    related = sum(any(word in text for word in ("left", "right", "above", "below")) for text in two) / len(
        two
    )
    coloured = sum(sum(word in COLOURS for word in text.split()) == 2 for text in two) / len(two)
    assert 0.5 < related < 0.7 and 0.5 < coloured < 0.8


def test_without_dropping_everything_is_said(scenes):
    ids, _ = caption_ids(scenes, seed=5, drop=False)
    assert torch.equal(ids, caption_ids(scenes, seed=6, drop=False)[0])
    for i in range(200):
        objects, links, background = parse(decode_ids(ids[i].tolist()))
        assert background == BACKGROUNDS[int(scenes.background[i])]
        for slot, spoken in enumerate(objects):
            assert spoken["colour"] == scenes.colour[i, slot]
            assert spoken.get("texture", 0) == scenes.texture[i, slot]
        assert int(scenes.relation[i]) < 0 or links[0] in ("left of", "above")
        assert caption_text(scenes, i) == decode_ids(ids[i].tolist())


def test_the_seed_chooses_the_phrase(scenes):
    a, b = (caption_ids(scenes, seed=seed)[0] for seed in (2, 3))
    assert torch.equal(a, caption_ids(scenes, seed=2)[0])
    assert (a != b).any(dim=1).float().mean() > 0.5


def test_seeds_out_of_range_are_refused(scenes):
    with pytest.raises(SeedError, match="out of range"):
        caption_ids(scenes, seed=-1)
