"""Which kernels are chosen on which card, without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toprovar_fx.ops.cards import capability

from .triton_runs import needs_triton

CUDA = torch.device("cuda", 0)
HALF = torch.bfloat16


def card(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], hip: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: found)
    monkeypatch.setattr(torch.version, "hip", hip)


class OnCuda(torch.Tensor):
    """A tensor that says it is on a card."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def rows(width: int = 128, heads: int = 2, dtype: torch.dtype = HALF) -> Any:
    return torch.zeros(1, heads, 4, width, dtype=dtype).as_subclass(OnCuda)


def test_cards_of_others_have_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (9, 0))
    assert capability(CUDA) == (9, 0) and capability(torch.device("cpu")) == (0, 0)
    # An MI200 says (9, 0) of itself.
    card(monkeypatch, (9, 0), hip="7.0")
    assert capability(CUDA) == (0, 0)


@needs_triton
@pytest.mark.parametrize(
    ("found", "hip", "heads", "has"),
    [
        ((9, 0), None, 2, True),
        ((8, 0), None, 2, True),
        # 128 channels take 96 KiB of the 64 that a T4 has.
        ((7, 5), None, 2, False),
        ((9, 0), "7.0", 2, False),
        ((9, 0), None, 70_000, False),
    ],
)
def test_where_entropies_come_from_one_kernel(
    monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], hip: str | None, heads: int, has: bool
) -> None:
    from toprovar_fx.ops.attention_with_entropy import _has_kernel

    card(monkeypatch, found, hip)
    x = rows(heads=heads, dtype=torch.float16)
    assert _has_kernel(x, x, x) is has


@needs_triton
def test_tiles_of_wide_heads_that_no_map_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    """(128, 64) of 256 channels take 144 KiB without maps; cards of capability 12.0 have 99."""
    from toprovar_fx.ops.triton_launch import default_tiles

    x = rows(256)
    shifted = torch.zeros(1, 2, 4, 257, dtype=HALF).as_subclass(OnCuda)[..., 1:]
    for found in ((9, 0), (10, 0), (12, 0)):
        card(monkeypatch, found)
        assert default_tiles(x, x, shifted).queries == 64  # type: ignore[union-attr]
    assert default_tiles(x, x, x).queries == 128  # type: ignore[union-attr]


@needs_triton
def test_the_hopper_kernel_maps_its_output_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from toprovar_fx.ops.triton_launch import GLUON_KNOWN, HopperTiles, default_tiles

    card(monkeypatch, (9, 0))
    # 36 numbers of 40: operands whose rows are aligned, which those of the output are not.
    part = rows(40)[..., :36]
    assert not isinstance(default_tiles(part, part, part), HopperTiles)
    assert isinstance(default_tiles(*[rows(40)] * 3), HopperTiles) is GLUON_KNOWN


@needs_triton
def test_maps_have_no_strides_of_zero() -> None:
    from toprovar_fx.ops.triton_launch import allows_tma

    x = torch.zeros(1, 2, 4, 64, dtype=HALF)
    assert allows_tma(x)
    assert not allows_tma(x.expand(3, -1, -1, -1))
