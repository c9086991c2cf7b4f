from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toprovar_fx.__main__ import main
from toprovar_fx.cli import generate as module
from toprovar_fx.cli.variants import Variant

from .cli_fakes import FakePipeline

PROMPT = "a red circle left of a blue square"


def fake_pipeline(variant: Variant, dense: Any) -> Any:
    return FakePipeline(pruned=True) if variant.compiler == "toprovar" else dense


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    dense = FakePipeline()
    monkeypatch.setattr(module, "load", lambda *_: dense)
    monkeypatch.setattr(Variant, "pipeline", fake_pipeline)
    return dense


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_one_image(fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one.png"
    assert main(["generate", PROMPT, "--seed", "7", "--out", str(out), "--json"]) == 0
    result = last_json(capsys)
    assert fake.calls == [((PROMPT,), (7,))]
    assert result["images"][0]["file"] == str(out)
    assert result["images"][0]["flops"] is None
    expected = np.random.default_rng(7).integers(0, 255, (256, 256, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(out)), expected)


def test_several_images_in_a_new_folder(fake: FakePipeline, tmp_path: Path) -> None:
    assert main(["generate", PROMPT, "a star", "--preset", "fast", "--out", str(tmp_path / "new")]) == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["a-red-circle-left-of-a-blue-square-0.png", "a-star-1.png"]
    assert fake.calls == []  # the preset's pipeline drew


def test_a_comparison_is_one_sheet(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    assert main(["generate", PROMPT, "--compare", "--out", str(out), "--json"]) == 0
    (row,) = last_json(capsys)["images"]
    assert row["preset"] == "balanced"
    assert row["dense"]["flops"] == 4e9
    assert row["pruned"]["flops"] == 1e9
    assert row["psnr_db"] > 20
    assert row["pruned"]["latency_ms"] > 0
    assert Image.open(out).width > 3 * 256


def test_an_interruption_keeps_finished_files(
    fake: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = module.write_png

    def interrupted(path: Path, image: Image.Image) -> None:
        if "star" in path.name:
            raise KeyboardInterrupt
        written(path, image)

    monkeypatch.setattr(module, "write_png", interrupted)
    assert main(["generate", PROMPT, "a star", "--out", str(tmp_path)]) == 130
    (file,) = tmp_path.iterdir()
    Image.open(file).verify()


@pytest.mark.parametrize(
    ("speedup", "words"),
    [(1.836, "1.84 times faster"), (1.0, "1.00 times faster"), (0.5, "2.00 times slower")],
)
def test_speed_in_words(speedup: float, words: str) -> None:
    assert module.speed_in_words(speedup) == words
