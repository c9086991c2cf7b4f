"""The kernels behind `attention_with_entropy` without a GPU: run in the interpreter, compiled for Hopper."""

from __future__ import annotations

import math
from typing import Any

import pytest

from .triton_runs import interpreted, needs_triton

pytestmark = needs_triton


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    return interpreted("interpreted_attention")


def test_output_and_entropies_equal_the_float64_oracle(cases: dict[str, dict[str, Any]]) -> None:
    assert len(cases) >= 20
    for name, case in cases.items():
        if name == "not a number":
            continue
        # At logits of 100 the fp32 logits themselves are known to about 1e-5 only.
        sharp = name in ("sharpness 30", "sharpness 100")
        limit = 1e-5 * case["largest"] + (3e-6 if sharp else 1e-12)
        assert case["entropy"] <= limit, name
        assert case["mean"] <= limit, name
        assert case["out"] <= (1e-3 if name == "float16" else 2e-5), name
        assert case["alike"] <= 1e-6, f"{name}: the outputs with other entropies differ"
        assert case["least"] >= 0, name


def test_special_rows(cases: dict[str, dict[str, Any]]) -> None:
    for name in ("one key", "keys from 36", "huge logits"):
        assert cases[name]["largest"] == 0
    assert cases["queries as keys"]["largest"] < 1e-6
    for name in ("zero scale", "sharpness 0"):
        assert cases[name]["least"] == pytest.approx(math.log(37), abs=1e-6)


def test_what_is_not_a_number_stays_so_in_its_sample_alone(cases: dict[str, dict[str, Any]]) -> None:
    first, second, mean_first, mean_second = cases["not a number"]["row of each"]
    assert math.isnan(second)
    assert math.isnan(mean_second)
    assert first == pytest.approx(mean_first, abs=1)
    assert first > 2


def test_the_hopper_kernel_overlaps_and_does_not_spill() -> None:
    from .kernel_compiler import hopper_kernel

    launching = pytest.importorskip("toprovar_fx.ops.triton_launch")
    if not launching.GLUON_KNOWN:
        pytest.skip("the Hopper kernel is not for this version of Triton")
    report = hopper_kernel(tiles=launching.HopperTiles(128, 2))
    assert report["spilled"] == 0
    assert not report["serialized"]
    assert report["shared"] <= 227 * 2**10
    assert report["registers"] <= 168, "of two consumers with 240 and a producer with 24"
    # The product with the keys is waited for alone.
    assert "wgmma.wait_group.sync.aligned 1" in report["ptx"]


@pytest.mark.parametrize(("dtype", "width"), [("bf16", 128), ("fp32", 64)])
def test_the_plain_kernel_compiles_for_hopper(dtype: str, width: int) -> None:
    from .kernel_compiler import plain_kernel

    launching = pytest.importorskip("toprovar_fx.ops.triton_launch")
    half = dtype == "bf16"
    tiles = launching.Tiles(128, 128, 8, 2, True) if half else launching.Tiles(64, 32, 4, 2)
    report = plain_kernel(dtype, width, tiles)
    assert report["spilled"] == 0
    assert "wgmma" in report["ptx"]
    assert half == ("cp.async.bulk.tensor" in report["ptx"])
    # Single precision must not go through tf32.
    assert "tf32" not in report["ptx"]
