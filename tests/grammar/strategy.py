"""Draws cases: one or two kinds of block per model, and in three of ten something that mixes tokens."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from .spec import ATTENTION_MIXERS, BLOCK_CHOICES, CASE_CHOICES, MIXERS, BlockSpec, CaseSpec

# Forms that take fewer key heads than heads as they are.
GROUPED = ("sdpa", "sdpa_keyword", "sdpa_bias", "sdpa_triangle", "flash", "flex")
INVALID_SHARE = 0.3
# How often a choice is drawn where that is not once: roughly as often as models are written that way.
WEIGHTS = {
    "attention": {"sdpa": 4, "sdpa_keyword": 3, "matmul": 3, "matmul_float": 3},
    "cache": {"slice": 2, "cat": 2},
    "cross": {"none": 3},
    "guidance": {"none": 3},
    "trace": {"symbolic": 24},
}


def cases() -> st.SearchStrategy[CaseSpec]:
    """Models of one to three layers with the runs that they are put to.

    Hypothesis draws the seed and the choices are made from it: its own choices come in clusters of
    look-alikes, which is good for shrinking, and here nothing is shrunk.
    """
    return st.randoms(use_true_random=True).map(draw_case)


def draw_case(random: Random) -> CaseSpec:
    """One case."""
    chosen = {name: weighted(random, name, values) for name, values in CASE_CHOICES.items()}
    heads = random.choice((1, 2, 2, 4))
    first, second = (draw_block(random, heads, chosen["rows"] == "guided") for _ in range(2))
    patterns = ((first,), (first, first), (first, second), (first, second, first))
    (layers,) = random.choices(patterns, (8, 4, 6, 1))
    if random.random() < INVALID_SHARE:
        count = random.randint(1, len(layers))
        for layer in random.sample(range(len(layers)), count):
            layers = (*layers[:layer], with_mixer(random, layers[layer]), *layers[layer + 1 :])
    return CaseSpec(
        blocks=layers,
        heads=heads,
        head_width=random.choice((4, 6, 8)),
        images=random.choice((1, 2, 3)),
        skip=random.random() < 0.3,
        seed=random.randrange(1000),
        **chosen,
    )


def weighted(random: Random, field: str, values: tuple[object, ...]) -> object:
    """One of the choices of a field."""
    weights = WEIGHTS.get(field, {})
    return random.choices(values, [weights.get(value, 1) for value in values])[0]


def draw_block(random: Random, heads: int, guided: bool) -> BlockSpec:
    """A valid block."""
    spec = BlockSpec(**{name: weighted(random, name, values) for name, values in BLOCK_CHOICES.items()})
    if heads == 1:
        spec = replace(spec, gqa="none")
    if spec.gqa == "native" and spec.attention not in GROUPED:
        spec = replace(spec, gqa="repeat")
    if spec.gqa != "none" and spec.qkv == "fused_view":
        spec = replace(spec, qkv="fused_split")
    return spec if guided else replace(spec, guidance="none")


def with_mixer(random: Random, spec: BlockSpec) -> BlockSpec:
    """The block with an invalid construct in it."""
    mixer = random.choice(MIXERS)
    if mixer in ATTENTION_MIXERS:
        return replace(spec, mixer=mixer, gqa="none")
    return replace(spec, mixer=mixer, mixer_at=random.choice(("attention", "mlp")))
