"""Compose the comparison sheet: dense, pruned, difference, bars of the costs, kept tokens of each scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

PANEL = 320  # pixels; smaller images are enlarged to it, larger ones keep their size
TILE = 184
MARGIN, GAP = 24, 16
TITLE, LINE = 32, 22
BAR = 16
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 30), (98, 98, 108)
DENSE, PRUNED = (176, 178, 188), (30, 140, 136)
GAIN = 4
# Kept share 0, 1/2, 1: dark blue, teal, yellow; even in lightness, so that it also reads in grey.
_RAMP = np.array([[32, 24, 72], [30, 140, 136], [250, 224, 60]], dtype=np.float32)


@dataclass(frozen=True)
class Bar:
    """A cost of both sides.

    Attributes:
        name: what is compared.
        dense: the dense value; `pruned`: the pruned one, in the same unit.
        unit: of both.
    """

    name: str
    dense: float
    pruned: float
    unit: str


@dataclass(frozen=True)
class Words:
    """The text of a sheet.

    Attributes:
        title: the first line, usually the prompt; broken into lines where it is long.
        captions: lines under the dense image, the pruned image and the difference; the first stands out.
        bars: costs, one pair of bars each.
    """

    title: str
    captions: tuple[Sequence[str], Sequence[str], Sequence[str]]
    bars: Sequence[Bar] = ()


def compose(
    words: Words,
    dense: NDArray[np.uint8],
    pruned: NDArray[np.uint8],
    maps: Mapping[int, NDArray[np.float32]],
) -> Image:
    """Return the sheet.

    Args:
        words: title, captions and costs.
        dense: image ``[H, W, 3]``.
        pruned: image ``[H, W, 3]`` of the same seed.
        maps: scale index -> kept share ``[h, w]`` in [0, 1].
    """
    from PIL import Image, ImageDraw

    panels = [_panel(image) for image in (dense, pruned, difference(dense, pruned))]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1) + 2 * MARGIN
    title = _wrap(words.title, width - 2 * MARGIN, _font(24))
    panels_top = MARGIN + len(title) * TITLE + GAP // 2
    captions_top = panels_top + panels[0].height + GAP // 2
    bars_top = captions_top + max(len(lines) for lines in words.captions) * LINE + GAP
    maps_top = bars_top + len(words.bars) * (2 * BAR + GAP) + (GAP if words.bars else 0)
    per_row = max(1, (width - 2 * MARGIN + GAP) // (TILE + GAP))
    rows = -(-len(maps) // per_row)
    height = maps_top + (LINE + GAP // 2 + rows * (TILE + LINE + GAP) if maps else 0) + MARGIN - GAP

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(title):
        draw.text((MARGIN, MARGIN + index * TITLE), line, fill=INK, font=_font(24))
    left = MARGIN
    for panel, lines in zip(panels, words.captions, strict=True):
        sheet.paste(panel, (left, panels_top))
        for index, line in enumerate(lines):
            place = (left, captions_top + index * LINE)
            draw.text(place, line, fill=FAINT if index else INK, font=_font(15 if index else 17))
        left += panel.width + GAP
    for index, bar in enumerate(words.bars):
        _bars(draw, bar, bars_top + index * (2 * BAR + GAP), width)
    if maps:
        _legend(sheet, draw, maps_top)
    for index, (scale, share) in enumerate(sorted(maps.items())):
        left = MARGIN + index % per_row * (TILE + GAP)
        top = maps_top + LINE + GAP // 2 + index // per_row * (TILE + LINE + GAP)
        sheet.paste(_tile(share), (left, top))
        label = f"scale {scale}: {share.shape[0]}x{share.shape[1]}, {share.mean():.0%} computed"
        draw.text((left, top + TILE + 4), label, fill=FAINT, font=_font(13))
    return sheet


def difference(dense: NDArray[np.uint8], pruned: NDArray[np.uint8], gain: int = GAIN) -> NDArray[np.uint8]:
    """Return ``gain`` times the signed difference around mid grey, uint8 ``[H, W, 3]``."""
    signed = pruned.astype(np.int32) - dense.astype(np.int32)
    return np.clip(128 + gain * signed, 0, 255).astype(np.uint8)


def _bars(draw: ImageDraw, bar: Bar, top: int, width: int) -> None:
    """Two bars below each other from a common start, the longer one reaching 0.7 of the sheet."""
    start = MARGIN + PANEL // 2
    draw.text((MARGIN, top + BAR // 2), bar.name, fill=INK, font=_font(15))
    longest = max(bar.dense, bar.pruned) or 1.0
    for index, (value, colour) in enumerate(((bar.dense, DENSE), (bar.pruned, PRUNED))):
        end = start + max(2, round(value / longest * (0.7 * width - start)))
        above = top + index * (BAR + 2)
        draw.rectangle((start, above, end, above + BAR - 1), fill=colour)
        text = f"{value:,.0f} {bar.unit}"
        draw.text((end + 8, above - 1), text, fill=INK if index else FAINT, font=_font(14))


def _legend(sheet: Image, draw: ImageDraw, top: int) -> None:
    font = _font(15)
    text = "Tokens computed at each pruned scale:   no layer"
    draw.text((MARGIN, top), text, fill=INK, font=font)
    left = MARGIN + round(font.getlength(text)) + 8
    scale = np.linspace(0, 1, 96, dtype=np.float32)[None].repeat(BAR - 4, 0)
    sheet.paste(_coloured(scale), (left, top + 3))
    draw.text((left + 104, top), "every layer", fill=INK, font=font)


def _panel(image: NDArray[np.uint8]) -> Image:
    from PIL import Image

    panel = Image.fromarray(image)
    if panel.height >= PANEL:
        return panel
    return panel.resize((round(panel.width * PANEL / panel.height), PANEL), Image.Resampling.BICUBIC)


def _tile(share: NDArray[np.float32]) -> Image:
    from PIL import Image

    tile = _coloured(share)
    scale = TILE / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(size, Image.Resampling.NEAREST)


def _coloured(share: NDArray[np.float32]) -> Image:
    from PIL import Image

    position = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    lower = np.minimum(position.astype(np.int64), len(_RAMP) - 2)
    colours = _RAMP[lower] + (position - lower)[..., None] * (_RAMP[lower + 1] - _RAMP[lower])
    return Image.fromarray(colours.round().astype(np.uint8))


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
