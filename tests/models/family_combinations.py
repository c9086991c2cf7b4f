"""Which parts of `families.py` are put together, and options that prune every layer of them."""

from __future__ import annotations

from . import families
from . import family_caches as caches

# Every layer may be pruned, some at several scales, one is skipped.
KEEP = {3: {0: 0.5, 2: 0.25}, 4: {0: 0.25, 1: 0.5, 2: 0.0}, 5: {0: 0.2, 1: 0.3, 2: 0.6}}
EVERY_LAYER = {
    "keep": KEEP,
    "score": "random",
    "restore": "residual",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
    "verify": "always",
    "strict": True,
}
CACHES = [
    caches.Joined,
    caches.JoinedTokensFirst,
    caches.Sliced,
    caches.Narrowed,
    caches.CopiedSlice,
    caches.IndexCopied,
    caches.Indexed,
    caches.Scattered,
    caches.TokensFirst,
    caches.Functional,
    caches.Stacked,
]
POSITIONS = [families.Absolute, families.HalfSplit, families.Interleaved, families.Complex]
LAYERS = [
    families.Layer,
    families.PostNorm,
    families.Parallel,
    families.RootMeanSquare,
    families.Modulated,
    families.HalfPrecision,
]
# Every cache with another layout and position, every layout and every position with another cache.
COMBINATIONS = [
    (LAYERS[at % len(LAYERS)], POSITIONS[at % len(POSITIONS)], kind) for at, kind in enumerate(CACHES)
]


def label(combination: tuple[type, ...]) -> str:
    return "-".join(part.__name__ for part in combination)
