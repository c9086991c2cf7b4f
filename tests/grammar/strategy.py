"""Draws cases: one or two kinds of block per model, and in three of ten something that mixes tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from .spec import ATTENTION_MIXERS, BLOCK_CHOICES, CASE_CHOICES, MIXERS, BlockSpec, CaseSpec

FLEX = ("flex", "flex_distance", "flex_temperature", "flex_table")
# Forms that take fewer key heads than heads as they are.
GROUPED = ("sdpa", "sdpa_keyword", "sdpa_bias", "sdpa_triangle", "flash", *FLEX)
# How often a choice is drawn where that is not once: roughly as often as models are written that way.
WEIGHTS: dict[str, dict[object, float]] = {
    "attention": {"sdpa": 4, "sdpa_keyword": 3, "matmul": 3, "matmul_float": 3, **dict.fromkeys(FLEX, 0.5)},
    "cache": {"slice": 2, "cat": 2},
    "cross": {"none": 3},
    "guidance": {"none": 3},
    "trace": {"symbolic": 24},
    "heads": {2: 2},
    "invalid": {False: 7, True: 3},
}
# By depth: one layer, two alike, two of two kinds, three of two kinds.
PATTERNS = ("a", "aa", "ab", "aba")
DEEP, SHALLOW = (8, 4, 6, 1), (24, 3, 4, 1)


def deal(random: Random, count: int, depths: Sequence[int] = DEEP) -> Iterator[CaseSpec]:
    """So many models with the runs that they are put to.

    Args:
        random: what is drawn is a function of its state.
        count: cases.
        depths: weights of `PATTERNS`.
    """
    dealer = Dealer(random, {**WEIGHTS, "pattern": dict(zip(PATTERNS, depths, strict=True))})
    for _ in range(count):
        yield draw_case(dealer)


class Dealer:
    """Chooses by weight as cards are dealt: none comes again before all cards of its field have come.

    So a few cases show every construct that they have room for, where independent draws repeat some and miss
    others.
    """

    def __init__(self, random: Random, weights: dict[str, dict[Any, float]]) -> None:
        self.random, self.weights = random, weights
        self.decks: dict[str, list[Any]] = {}

    def __call__(self, field: str, values: Sequence[Any]) -> Any:
        """One of the values of a field."""
        deck = self.decks.setdefault(field, [])
        if not deck:
            weights = [self.weights.get(field, {}).get(value, 1) for value in values]
            for value, weight in zip(values, weights, strict=True):
                deck.extend([value] * round(weight / min(weights)))
            self.random.shuffle(deck)
        return deck.pop()


def draw_case(dealer: Dealer) -> CaseSpec:
    """One case."""
    chosen = {name: dealer(name, values) for name, values in CASE_CHOICES.items()}
    heads = dealer("heads", (1, 2, 4))
    pattern = dealer("pattern", PATTERNS)
    kinds = {kind: draw_block(dealer, heads, chosen["rows"] == "guided") for kind in sorted(set(pattern))}
    layers = [kinds[kind] for kind in pattern]
    random = dealer.random
    if dealer("invalid", (False, True)):
        for layer in random.sample(range(len(layers)), random.randint(1, len(layers))):
            layers[layer] = with_mixer(dealer, layers[layer])
    return CaseSpec(
        blocks=tuple(layers),
        heads=heads,
        head_width=random.choice((4, 6, 8)),
        images=random.choice((1, 2, 3)),
        skip=random.random() < 0.3,
        seed=random.randrange(1000),
        **chosen,
    )


def draw_block(dealer: Dealer, heads: int, guided: bool) -> BlockSpec:
    """A valid block."""
    spec = BlockSpec(**{name: dealer(name, values) for name, values in BLOCK_CHOICES.items()})
    if heads == 1:
        spec = replace(spec, gqa="none")
    if spec.gqa == "native" and spec.attention not in GROUPED:
        spec = replace(spec, gqa="repeat")
    if spec.gqa != "none" and spec.qkv == "fused_view":
        spec = replace(spec, qkv="fused_split")
    return spec if guided else replace(spec, guidance="none")


def with_mixer(dealer: Dealer, spec: BlockSpec) -> BlockSpec:
    """The block with an invalid construct in it."""
    mixer = dealer("mixer", MIXERS)
    if mixer in ATTENTION_MIXERS:
        return replace(spec, mixer=mixer, gqa="none")
    return replace(spec, mixer=mixer, mixer_at=dealer.random.choice(("attention", "mlp")))
