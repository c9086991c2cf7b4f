"""`toprovar gallery`: what is drawn and written, and the pictures of the tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from toprovar_fx.__main__ import main
from toprovar_fx.cli import gallery as module
from toprovar_fx.cli.variants import Variant

from .cli_fakes import FakePipeline

PROMPTS = ["a red circle", "two green triangles"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Variant]:
    variants: list[Variant] = []

    def pipeline(variant: Variant, dense: Any) -> FakePipeline:
        variants.append(variant)
        return FakePipeline(pruned=True)

    dense = FakePipeline(transformer=SimpleNamespace(dtype=torch.float32))
    monkeypatch.setattr(module, "load", lambda *_: dense)
    monkeypatch.setattr(Variant, "pipeline", pipeline)
    monkeypatch.setattr("toprovar_fx.cli.verdict.verdicts", lambda images, prompt: [True])
    return variants


def test_every_variant_draws_every_prompt(made, tmp_path, capsys):
    out = tmp_path / "new" / "gallery"
    given = [*PROMPTS, "--preset", "fast", "--preset", "random", "--seed", "5", "--out", str(out), "--json"]
    assert main(["gallery", *given, "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads((out / "gallery.json").read_text())
    assert {**written, "out": str(out)} == told
    assert [variant.options["lowering"] for variant in made] == ["eager", "eager"]
    assert [(one["prompt"], one["seed"]) for one in written["rows"]] == [(PROMPTS[0], 5), (PROMPTS[1], 6)]
    for one in written["rows"]:
        assert [image["variant"] for image in one["images"]] == ["dense", "fast", "random"]
        dense, fast, _ = one["images"]
        assert dense["psnr_db"] is None and dense["ssim"] == pytest.approx(1) and dense["flops_share"] is None
        assert fast["psnr_db"] > 40 and fast["flops_share"] == 0.25 and fast["sceneeval_pass"] is True
        drawn = np.asarray(Image.open(out / fast["file"]))
        assert (drawn % 2 == 0).all() and drawn.shape == (256, 256, 3)
        first = one["tokens"][0]
        assert (first["variant"], first["scale"], first["side"], first["kept_share"]) == (
            "fast",
            1,
            [8, 8],
            0.75,
        )
        # Rows of tokens that half of the layers computed are darker.
        tokens = np.asarray(Image.open(out / first["file"]))
        assert (tokens[32:64] == drawn[32:64]).all() and (tokens[:32] < drawn[:32]).mean() > 0.9
    # The report shows all of it.
    assert main(["report", str(tmp_path / "report"), str(out)]) == 0
    assert (tmp_path / "report" / "report.html").read_text().count("<figure>") == 2 * (3 + 2)


def test_places_are_as_light_as_the_layers_that_computed_them():
    image = np.full((4, 6, 3), 200, np.uint8)
    made = module.darkened(image, np.array([[1.0, 0.0], [0.5, 1.0]], np.float32))
    assert made.shape == image.shape and made.dtype == np.uint8
    assert (made[:2, :3] == 200).all() and (made[2:, 3:] == 200).all()
    assert (made[:2, 3:] == round(200 * module.DARKEST)).all()
    assert (made[2:, :3] == round(200 * (module.DARKEST + 1) / 2)).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "no prompt was given"),
        (PROMPTS, "at least one --preset"),
        ([*PROMPTS, "--preset", "eager"], "prunes nothing"),
        ([*PROMPTS, "--preset", "fastt"], "nearest: fast"),
        (["a red unicorn", "--preset", "fast"], "unicorn"),
    ],
)
def test_bad_input_is_one_line(given, expected, tmp_path, capsys):
    assert main(["gallery", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error and not (tmp_path / "out").exists()
