"""How the tiles of attention are dealt out: at the sizes of models, and that nothing is left out at any."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx.ops.attention_plan import (
    KEYS_PER_STEP,
    QUERIES_PER_TILE,
    Deal,
    choose_deal,
    filled_ranges,
    steps_of,
    tiles_of,
)

H100 = 132


def test_the_choice_at_the_sizes_of_a_model() -> None:
    # Two rows of 16 heads: 132 tiles at a time, those of a last turn that few would have in ranges of keys.
    expected = {
        **{(256, 521): (64, 1), (576, 1497): (132, 4), (1024, 2521): (256, 1), (1600, 4121): (396, 6)},
        **{(4096, 10521): (1024, 1), (512, 3000): (128, 1)},
        **{(51, 1700): (0, 4), (205, 10521): (0, 2), (256, 1753): (0, 2)},
        **{(1, 1): None, (64, 157): None, (15, 10521): None},
    }
    found = {shape: choose_deal(*shape, 32, H100) for shape in expected}
    assert {shape: deal and (deal.whole, deal.ranges) for shape, deal in found.items()} == expected
    # Of 28 heads each 280 tiles are two turns, and 16 are left over; 224 leave too little to gain.
    assert choose_deal(576, 1497, 56, H100) == (264, 6, H100)
    assert choose_deal(400, 921, 56, H100) == (224, 1, H100)
    # The tiles of a single head do not fill a card.
    assert choose_deal(4096, 10521, 1, H100) == (0, 4, H100)


def pieces_of(deal: Deal, queries: int, keys: int, heads: int) -> list[list[tuple[int, int, int]]]:
    """(tile, first key, end of the keys) of what each program takes, as `gluon_dealt_attention` reckons."""
    apart = tiles_of(queries, heads) - deal.whole
    dealt = math.ceil(math.ceil(keys / KEYS_PER_STEP) / deal.ranges) * KEYS_PER_STEP
    pieces = [(tile, 0, keys) for tile in range(deal.whole)]
    pieces += [
        (deal.whole + at // deal.ranges, first, min(first + dealt, keys))
        for at in range(apart * deal.ranges)
        for first in [at % deal.ranges * dealt]
    ]
    return [pieces[program :: deal.programs] for program in range(min(len(pieces), deal.programs))]


@given(st.integers(16, 5000), st.integers(512, 12000), st.integers(1, 200), st.integers(1, 200))
def test_every_tile_meets_every_key_once(queries: int, keys: int, heads: int, programs: int) -> None:
    deal = choose_deal(queries, keys, heads, programs)
    assert deal is not None
    tiles, steps = tiles_of(queries, heads), math.ceil(keys / KEYS_PER_STEP)
    assert tiles == heads * math.ceil(queries / QUERIES_PER_TILE)
    assert deal.ranges == filled_ranges(steps, deal.ranges)
    work = pieces_of(deal, queries, keys, heads)
    met: list[list[tuple[int, int]]] = [[] for _ in range(tiles)]
    for tile, first, end in (piece for own in work for piece in own):
        assert first < end
        met[tile].append((first, end))
    for ranges in met:
        first, ends = zip(*sorted(ranges), strict=True)
        assert (0, *ends[:-1]) == first and ends[-1] == keys
    # The reckoning of the time counts the steps of the program that has most.
    most = max(sum(math.ceil((end - first) / KEYS_PER_STEP) for _, first, end in own) for own in work)
    assert most <= steps_of(deal, tiles, steps)
    assert steps_of(deal, tiles, steps) <= steps_of(Deal(tiles, 1, programs), tiles, steps)
