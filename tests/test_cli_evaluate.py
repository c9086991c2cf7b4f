from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import toprovar_fx.evaluation
from toprovar_fx.__main__ import main
from toprovar_fx.cli import evaluate as module
from toprovar_fx.cli.variants import Variant

from .cli_fakes import FakePipeline


def score_even(images: np.ndarray, prompts: Any) -> list[bool]:
    return [bool(np.all(image % 2 == 0)) for image in images]


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakePipeline]:
    made: dict[str, FakePipeline] = {}

    def pipeline(variant: Variant, dense: Any) -> FakePipeline:
        return made.setdefault(variant.name, FakePipeline(pruned=variant.compiler == "toprovar"))

    monkeypatch.setattr(module, "load", lambda *_: FakePipeline())
    monkeypatch.setattr(Variant, "pipeline", pipeline)
    monkeypatch.setattr(toprovar_fx.evaluation, "score_images", score_even)
    return made


def test_a_preset_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--preset", "fast", "--preset", "fast", "--n", "1"]) == 2
    assert "--preset fast --preset fast: expected each once" in capsys.readouterr().err


def test_json_holds_dense_and_presets(
    pipes: dict[str, FakePipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    presets = ["--preset", "balanced", "--preset", "fast"]
    assert main(["eval", *presets, "--n", "12", "--batch", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["presets"]) == {"dense", "balanced", "fast"}
    assert result["preset"] == "balanced"
    assert result["overall"] == 1.0  # pruned fakes are even, dense ones are not
    assert set(result["categories"]) == {
        "single_object", "two_objects", "counting", "colors", "position", "color_attribution"
    }  # fmt: skip
    assert result["flops"] == 1e9
    assert result["psnr_db"] > 20
    dense = result["presets"]["dense"]
    assert dense["overall"] == 0.0
    assert dense["psnr_db"] is None
    assert dense["identical_images"] == 12
    assert dense["flops"] == 60.0  # the fake's one linear layer: 2 x 5 x 2 x 3
    assert result["overall_minus_dense"] == 1.0


def test_every_batch_has_one_shape_and_every_image_its_seed(pipes: dict[str, FakePipeline]) -> None:
    assert main(["eval", "--preset", "balanced", "--n", "7", "--batch", "3", "--seed", "10"]) == 0
    for pipe in pipes.values():
        assert {len(texts) for texts, _ in pipe.calls} == {3}
        assert [seeds for _, seeds in pipe.calls[1:]] == [(10, 11, 12), (13, 14, 15), (16, 16, 16)]


def test_dense_alone(pipes: dict[str, FakePipeline], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--n", "6", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["preset"] == "dense"
    assert list(result["presets"]) == ["dense"]
