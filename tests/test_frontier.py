"""The quality-cost table: intervals, equal budgets, what cannot be reached, and its three forms."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toprovar_fx.__main__ import main
from toprovar_fx.errors import OptionError
from toprovar_fx.evaluation import frontier as module
from toprovar_fx.evaluation.features import image_features, real_features
from toprovar_fx.evaluation.study import PairedStudy, judges
from toprovar_fx.options import Options
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.scenes.prompts import eval_prompts

CATEGORIES = dict.fromkeys(
    ("single_object", "two_objects", "counting", "colors", "position", "color_attribution"), 0.5
)

PIPE = SimpleNamespace(transformer=SimpleNamespace(dtype=torch.bfloat16))


class Study:
    """Verdicts by a rule: run r fails prompt r when dense, and the pruned ones fail prompt 0 as well."""

    def __init__(self, pipe, n, split, batch, pool, run=0, frechet=False) -> None:
        assert split == "test" and frechet
        self.dense_scores = [at != run for at in range(n)]
        self.baseline = {"overall": 0.9, "categories": CATEGORIES, "frechet": 0.1, "seconds": 1.0}

    def score(self, options):
        budget = Options.parse(options).budget
        if budget and budget > 3:
            raise OptionError("budget='4x': too much")
        passed = [one and at > 0 for at, one in enumerate(self.dense_scores)]
        share = 1 / budget if budget else 0.5
        figures = {"psnr_db": None, "ssim": 0.9, "frechet": 0.2, "gflop_per_image": 1.0, "flops_share": share}
        return {"passed": passed, "overall": 0.8, "categories": CATEGORIES, **figures}


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.cells, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_command_writes_all_forms(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "PairedStudy", Study)
    monkeypatch.setattr("toprovar_fx.cli.frontier.load", lambda *_, **__: PIPE)
    given = ["--preset", "@criterion", "--preset", "fast", "--budgets", "2x,4x", "--runs", "2", "--n", "5"]
    folder = tmp_path / "new" / "folder"
    assert main(["eval", *given, "--table", str(folder), "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["rows"]) == {"criterion", "criterion at 2x", "fast"}
    assert result["left_out"] == {"criterion at 4x": "budget='4x': too much"}
    assert (result["dtype"], result["batch"], result["budgets"]) == ("bfloat16", 4, "2x,4x")
    assert result["presets"] == "@criterion fast"
    row = result["rows"]["criterion at 2x"]
    # Run 0: prompt 0 fails anyway; run 1: it fails because of pruning. Over prompts: -1/2, 0, 0, 0, 0.
    by_prompt = np.array([-0.5, 0, 0, 0, 0])
    assert row["change"] == pytest.approx(by_prompt.mean())
    assert row["change_ci95"] == pytest.approx(1.96 * by_prompt.std(ddof=1) / math.sqrt(5))
    assert row["runs"] == 2 and row["psnr_db"] is None and row["flops_share"] == 0.5
    assert {entry.name for entry in folder.iterdir()} == {
        f"table.{kind}" for kind in ("json", "md", "html", "png")
    }
    page = Cells()
    page.feed((folder / "table.html").read_text())
    assert "criterion at 2x" in page.cells and "-0.100 ± 0.196" in page.cells
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    assert "| dense | 0.900 |" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "at least one --preset"),
        (["--preset", "eager"], "prunes nothing"),
        (["--preset", "@fast", "--budgets", "2x,0x"], "target='0x'"),
        (["--preset", "fast", "--runs", "0"], "--runs is 0"),
    ],
)
def test_bad_input_is_one_line(given, expected, tmp_path, capsys):
    assert main(["eval", *given, "--table", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_of_the_demo_model():
    """Other runs are other images of the same prompts; what prunes nothing changes nothing."""
    pipe = InfinityPipeline.from_pretrained("scenes", dtype=torch.float32)
    with judges(1) as pool, torch.inference_mode():
        first = PairedStudy(pipe, 2, "test", 2, pool, frechet=True)
        other = PairedStudy(pipe, 2, "test", 2, pool, run=1)
        row = first.score({"preset": "lossless"})
    assert [prompt.text for prompt in first.prompts] == [prompt.text for prompt in other.prompts]
    assert not np.array_equal(first.dense, other.dense) and other.baseline["frechet"] is None
    assert row["passed"] == first.dense_scores and row["change"] == 0 and row["psnr_db"] is None
    assert row["frechet"] == first.baseline["frechet"]
    features = image_features(pipe.vae, first.dense)
    assert features.shape == (2, 2 * pipe.vae.config.bsq.bits) and features.isfinite().all()
    assert real_features(pipe.vae, eval_prompts(3)).shape == (3, features.shape[1])
