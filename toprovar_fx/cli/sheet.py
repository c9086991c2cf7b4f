"""Compose the comparison sheet: dense, pruned, difference, the kept tokens of each pruned scale, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

PANEL = 320  # pixels; smaller images are enlarged to it, larger ones keep their size
TILE = 152
GAP = 12
LINE = 20
PAPER, INK, FAINT = (255, 255, 255), (28, 28, 32), (104, 104, 112)
GAIN = 8
# Kept share 0, 1/2, 1: dark blue, teal, yellow; even in lightness, so that it also reads in grey.
_RAMP = np.array([[32, 24, 72], [30, 140, 136], [250, 224, 60]], dtype=np.float32)


def compose(
    title: str,
    dense: NDArray[np.uint8],
    pruned: NDArray[np.uint8],
    maps: Mapping[int, NDArray[np.float32]],
    captions: tuple[Sequence[str], Sequence[str], Sequence[str]],
) -> Image:
    """Return the sheet.

    Args:
        title: the first line, usually the prompt.
        dense: image ``[H, W, 3]``.
        pruned: image ``[H, W, 3]`` of the same seed.
        maps: scale index -> kept share ``[h, w]`` in [0, 1].
        captions: lines under the dense image, the pruned image and the difference.
    """
    from PIL import Image, ImageDraw

    panels = [_panel(image) for image in (dense, pruned, difference(dense, pruned))]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) + 1)
    title_lines = _wrap(title, width - 2 * GAP, _font(18))
    panels_top = GAP + len(title_lines) * (LINE + 4) + GAP // 2
    captions_top = panels_top + panels[0].height + GAP // 2
    maps_top = captions_top + max(len(lines) for lines in captions) * LINE + GAP
    per_row = max(1, (width - GAP) // (TILE + GAP))
    rows = -(-len(maps) // per_row)
    height = maps_top + (LINE + rows * (TILE + LINE + GAP) if maps else 0)

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(title_lines):
        draw.text((GAP, GAP + index * (LINE + 4)), line, fill=INK, font=_font(18))
    left = GAP
    for panel, lines in zip(panels, captions, strict=True):
        sheet.paste(panel, (left, panels_top))
        for index, line in enumerate(lines):
            draw.text((left, captions_top + index * LINE), line, fill=FAINT if index else INK, font=_font(14))
        left += panel.width + GAP
    if maps:
        legend = "tokens computed at each pruned scale: yellow in every layer, dark blue in none"
        draw.text((GAP, maps_top), legend, fill=INK, font=_font(14))
    for index, (scale, share) in enumerate(sorted(maps.items())):
        left = GAP + index % per_row * (TILE + GAP)
        top = maps_top + LINE + index // per_row * (TILE + LINE + GAP)
        sheet.paste(_tile(share), (left, top))
        label = f"scale {scale}: {share.shape[0]}x{share.shape[1]}, {share.mean():.0%} kept"
        draw.text((left, top + TILE + 2), label, fill=FAINT, font=_font(12))
    return sheet


def difference(dense: NDArray[np.uint8], pruned: NDArray[np.uint8], gain: int = GAIN) -> NDArray[np.uint8]:
    """Return ``gain`` times the signed difference around mid grey, uint8 ``[H, W, 3]``."""
    signed = pruned.astype(np.int32) - dense.astype(np.int32)
    return np.clip(128 + gain * signed, 0, 255).astype(np.uint8)


def _panel(image: NDArray[np.uint8]) -> Image:
    from PIL import Image

    panel = Image.fromarray(image)
    if panel.height >= PANEL:
        return panel
    return panel.resize((round(panel.width * PANEL / panel.height), PANEL), Image.Resampling.BICUBIC)


def _tile(share: NDArray[np.float32]) -> Image:
    from PIL import Image

    position = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    lower = np.minimum(position.astype(np.int64), len(_RAMP) - 2)
    colours = _RAMP[lower] + (position - lower)[..., None] * (_RAMP[lower + 1] - _RAMP[lower])
    tile = Image.fromarray(colours.round().astype(np.uint8))
    scale = TILE / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(size, Image.Resampling.NEAREST)


def _wrap(text: str, width: int, font: FreeTypeFont | ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
