"""A classical detector of scene objects: colour segmentation, connected components, shape templates.

It shares the palette and the signed distance functions with the renderer, from which hues and templates are
cut, and learns nothing: whatever it reports can be checked by eye.
"""

from __future__ import annotations

import colorsys
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..scenes.palette import ACCENT_COLOURS, OBJECT_COLOURS
from ..scenes.vocab import COLOURS, SHAPES

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_BLUR = 0.7  # pixels: takes the edge off grain
_BRIGHT = 0.66  # brighter than any background
_BRIGHT_CHROMA = 0.24
_DARK_CHROMA = 0.27
_DARK_SATURATION = 0.60  # backgrounds reach 0.55
_WHITE_MINIMUM = 0.58
_WHITE_CHROMA = 0.17
_HUE_REACH = 30.0  # degrees
_WHITE = COLOURS.index("white")

_MIN_AREA = 300  # pixels; the smallest object of the sampler has about 760
_MAX_HOLE = 0.06  # of the component: smaller holes are flaws, the hole of a ring is 0.21
_GRID = 40  # side of a normalised silhouette
_REACH = 1.05  # half side of it, in square roots of the area
_ANGLES = range(-25, 26, 5)  # degrees
MIN_OVERLAP = 0.80


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        shape: Word of ``vocab.SHAPES``.
        colour: Word of ``vocab.COLOURS``.
        cx: Centroid in pixels from the left.
        cy: Centroid in pixels from the top.
        area: Pixels.
        confidence: Intersection over union with the best template, `MIN_OVERLAP` to 1.
    """

    shape: str
    colour: str
    cx: float
    cy: float
    area: int
    confidence: float


@functools.cache
def _hues() -> FloatArray:
    """Hue of every colour word in degrees, float32 [8]: the mean of its two tones; NaN for white."""
    hues = []
    for tone, accent in zip(OBJECT_COLOURS, ACCENT_COLOURS, strict=True):
        middle = [(a + b) / 2 for a, b in zip(tone, accent, strict=True)]
        hues.append(360 * colorsys.rgb_to_hsv(*middle)[0])
    hues[_WHITE] = math.nan
    return np.array(hues, dtype=np.float32)


def _hue(image: FloatArray, maximum: FloatArray, chroma: FloatArray) -> FloatArray:
    """Hue in degrees of RGB pixels, float32 [3, N]."""
    red, green, blue = image
    safe = np.maximum(chroma, 1e-6)
    sixth = np.where(
        maximum == red,
        (green - blue) / safe,
        np.where(maximum == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return np.asarray(60 * sixth % 360, dtype=np.float32)


def segment(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Label every pixel with the index of its colour word, or -1 for background.

    Args:
        image: sRGB, uint8 ``[H, W, 3]``.

    Returns:
        int8 ``[H, W]``.
    """
    from scipy import ndimage

    planes = np.moveaxis(image, 2, 0).astype(np.float32, order="C") / 255
    smooth = ndimage.gaussian_filter(planes, sigma=(0, _BLUR, _BLUR), truncate=2.5)
    maximum, minimum = smooth.max(axis=0), smooth.min(axis=0)
    chroma = maximum - minimum
    saturated = chroma > _DARK_SATURATION * maximum
    vivid = ((maximum > _BRIGHT) & (chroma > _BRIGHT_CHROMA)) | ((chroma > _DARK_CHROMA) & saturated)
    labels = np.full(image.shape[:2], -1, dtype=np.int8)
    if vivid.any():
        hue = _hue(smooth[:, vivid], maximum[vivid], chroma[vivid])
        away = np.abs((hue[:, None] - _hues() + 180) % 360 - 180)
        away[:, _WHITE] = 360.0
        labels[vivid] = np.where(away.min(axis=1) < _HUE_REACH, away.argmin(axis=1), -1)
    labels[(minimum > _WHITE_MINIMUM) & (chroma < _WHITE_CHROMA)] = _WHITE
    return labels


@functools.cache
def _templates() -> FloatArray:
    """All shapes at all angles, scaled to unit area about their centroids, float32 [8 * A, G * G]."""
    import torch

    from ..scenes.shapes import SHAPE_FUNCTIONS

    fine = torch.linspace(-1.4, 1.4, 561)
    grid = torch.linspace(-_REACH, _REACH, _GRID)
    silhouettes = []
    for function in SHAPE_FUNCTIONS:
        v, u = torch.meshgrid(fine, fine, indexing="ij")
        inside = function(u, v) < 0
        scale = math.sqrt(inside.sum().item()) * (fine[1] - fine[0]).item()
        centre_u, centre_v = u[inside].mean().item(), v[inside].mean().item()
        for degrees in _ANGLES:
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            y, x = torch.meshgrid(grid * scale, grid * scale, indexing="ij")
            turned = function(cosine * x + sine * y + centre_u, cosine * y - sine * x + centre_v) < 0
            silhouettes.append(turned.flatten().numpy())
    return np.stack(silhouettes).astype(np.float32)


def classify_shape(mask: BoolArray) -> tuple[str, float]:
    """Name the shape of a silhouette.

    Args:
        mask: bool ``[H, W]`` with at least one true pixel.

    Returns:
        The word of the best template and its intersection over union.
    """
    rows, columns = np.nonzero(mask)
    scale = math.sqrt(len(rows))
    offsets = np.linspace(-_REACH, _REACH, _GRID) * scale
    y = np.rint(rows.mean() + offsets).astype(np.int64)
    x = np.rint(columns.mean() + offsets).astype(np.int64)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None]
    sampled = mask[y.clip(0, mask.shape[0] - 1)[:, None], x.clip(0, mask.shape[1] - 1)[None]] & inside
    silhouette = sampled.ravel().astype(np.float32)
    templates = _templates()
    common = templates @ silhouette
    overlap = common / (templates.sum(axis=1) + silhouette.sum() - common)
    best = int(overlap.argmax())
    return SHAPES[best // len(_ANGLES)], float(overlap[best])


def _close_flaws(mask: BoolArray) -> BoolArray:
    """Fill the holes of a component that are too small to be a ring's."""
    from scipy import ndimage

    holes, number = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    if number == 0:
        return mask
    areas = np.bincount(holes.ravel())
    small = areas < _MAX_HOLE * mask.sum()
    small[0] = False
    return np.asarray(mask | small[holes], dtype=np.bool_)


def detect(image: npt.NDArray[np.uint8]) -> list[Detection]:
    """Find the objects of a scene, the most certain one first.

    Args:
        image: sRGB, uint8 ``[H, W, 3]``, about 256 pixels a side.
    """
    from scipy import ndimage

    labels = segment(image)
    detections = []
    for index, colour in enumerate(COLOURS):
        mask = labels == index
        if mask.sum() < _MIN_AREA:
            continue
        mask = ndimage.binary_opening(ndimage.binary_closing(mask))
        components, number = ndimage.label(mask)
        boxes = ndimage.find_objects(components)
        areas = np.bincount(components.ravel(), minlength=number + 1)
        for component in range(1, number + 1):
            if areas[component] < _MIN_AREA:
                continue
            box = boxes[component - 1]
            silhouette = _close_flaws(components[box] == component)
            shape, overlap = classify_shape(silhouette)
            if overlap < MIN_OVERLAP:
                continue
            rows, columns = np.nonzero(silhouette)
            cx, cy = float(columns.mean() + box[1].start), float(rows.mean() + box[0].start)
            detections.append(Detection(shape, colour, cx, cy, len(rows), overlap))
    return sorted(detections, key=lambda found: -found.confidence)
