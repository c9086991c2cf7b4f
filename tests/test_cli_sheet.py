from __future__ import annotations

import numpy as np
import pytest

from toprovar_fx.cli import sheet

CAPTIONS = (["dense", "12 ms"], ["pruned", "6 ms", "SceneEval: pass"], ["difference"])
BARS = [sheet.Bar("time", 1234.5, 600.0, "ms"), sheet.Bar("work", 0.0, 0.0, "GFLOPs")]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(256, 256), (64, 128), (512, 256)])
@pytest.mark.parametrize("maps", [0, 1, 9])
def test_everything_is_inside(size: tuple[int, int], maps: int) -> None:
    shares = {index: np.full((4 + index, 3), index / 9, dtype=np.float32) for index in range(maps)}
    title = "a striped red circle to the left of a dotted blue square on grass and a star " * 2
    words = sheet.Words(title, CAPTIONS, BARS)
    picture = sheet.compose(words, noise(*size), noise(*size, seed=1), shares)
    border = np.asarray(picture).astype(int)
    for edge in (border[0], border[-1], border[:, 0], border[:, -1]):
        assert (edge == 255).all(), "something is cut off"
    empty = sheet.compose(words, noise(*size), noise(*size, seed=1), {})
    assert picture.width == empty.width
    assert (picture.height > empty.height) == bool(maps)


def test_difference_is_grey_where_equal_and_amplified_elsewhere() -> None:
    dense = np.full((2, 2, 3), 100, dtype=np.uint8)
    pruned = dense.copy()
    pruned[0, 0, 0] += 3
    pruned[0, 1, 1] -= 100
    shown = sheet.difference(dense, pruned, gain=8)
    assert shown[1, 1].tolist() == [128, 128, 128]
    assert shown[0, 0].tolist() == [152, 128, 128]
    assert shown[0, 1].tolist() == [128, 0, 128]


def test_a_tile_shows_kept_bright_and_dropped_dark() -> None:
    share = np.array([[0.0, 1.0], [0.5, 0.25]], dtype=np.float32)
    tile = np.asarray(sheet._tile(share)).astype(int).sum(axis=2)
    low, high = sheet.TILE // 4, 3 * sheet.TILE // 4
    assert tile[low, low] < tile[high, high] < tile[high, low] < tile[low, high]
