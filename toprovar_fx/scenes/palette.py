"""Colours of objects and backgrounds, and the background families' mixtures of patterns.

Every object colour is saturated or white; every background stays under `BACKGROUND_LIMIT` in its largest
channel and is muted, so a classical checker tells objects from backgrounds by chroma and lightness alone.
"""

from __future__ import annotations

# sRGB in [0, 1], in the order of vocab.COLOURS; the hues are 358, 29, 49, 137, 220, 269 and 331 degrees.
OBJECT_COLOURS = (
    (0.90, 0.17, 0.19),
    (0.98, 0.51, 0.08),
    (0.99, 0.84, 0.16),
    (0.18, 0.72, 0.33),
    (0.18, 0.43, 0.94),
    (0.56, 0.27, 0.87),
    (0.98, 0.48, 0.72),
    (0.96, 0.96, 0.97),
)
ACCENT_COLOURS = (  # the second tone of textures: the same hue, darker
    (0.60, 0.08, 0.10),
    (0.72, 0.34, 0.03),
    (0.76, 0.61, 0.06),
    (0.09, 0.48, 0.20),
    (0.09, 0.25, 0.66),
    (0.36, 0.14, 0.60),
    (0.78, 0.28, 0.50),
    (0.76, 0.77, 0.81),
)

BACKGROUND_LIMIT = 0.60
BACKGROUND_COLOURS = (  # vocab.BACKGROUNDS: grass, sand, water, tiles, fabric, wood
    (0.24, 0.33, 0.22),
    (0.50, 0.44, 0.35),
    (0.20, 0.29, 0.36),
    (0.34, 0.34, 0.38),
    (0.30, 0.22, 0.28),
    (0.36, 0.27, 0.20),
)
# Weights of the patterns of backgrounds.py, in its order:
# soft, medium, grain, vertical strokes, horizontal strokes, tiles, weave, waves.
BACKGROUND_MIXTURES = (
    (0.22, 0.15, 0.16, 0.55, 0.00, 0.00, 0.00, 0.00),
    (0.12, 0.10, 0.24, 0.00, 0.00, 0.00, 0.00, 0.12),
    (0.20, 0.00, 0.06, 0.00, 0.28, 0.00, 0.00, 0.22),
    (0.12, 0.10, 0.08, 0.00, 0.00, 0.34, 0.00, 0.00),
    (0.20, 0.00, 0.12, 0.10, 0.10, 0.00, 0.28, 0.00),
    (0.16, 0.05, 0.08, 0.00, 0.40, 0.00, 0.00, 0.00),
)
