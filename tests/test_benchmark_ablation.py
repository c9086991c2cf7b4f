"""The ablation script: rows are kept as they are measured, and a second run measures what is missing."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from benchmarks import ablation as script
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.reporting.tables import ablations

from .frontier_tables import bench, timed


class Study:
    drawn: ClassVar[list[str]] = []
    first_seed, baseline = 0, {"overall": 0.9, "categories": {}, "match": 0.95}

    def __init__(self, pipe, n, split, batch, pool) -> None:
        self.drawn.append("dense")

    def start(self, options):
        self.drawn.append(str(options.get("scale_exit")))
        return options

    def finish(self, options):
        figures = {"overall": 0.8, "change": -0.1, "change_se": 0.01, "psnr_db": None, "ssim": 1.0}
        shown = {name: str(value) for name, value in options.items()}
        return {**figures, "flops_share": 0.5, "seconds": 1.0, "passed": [True], "options": shown}


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    pipe = SimpleNamespace(transformer=SimpleNamespace(dtype=torch.float32))
    monkeypatch.setattr(script, "PairedStudy", Study)
    monkeypatch.setattr(InfinityPipeline, "from_pretrained", lambda *_: pipe)
    monkeypatch.setattr(Study, "drawn", [])
    return Study.drawn


def test_rows_are_measured_once(drawn, tmp_path, capsys):
    out = tmp_path / "ablation.json"
    given = ["--n", "6", "--device", "cpu", "--workers", "1", "--out", str(out), "--groups", "scales"]
    script.main([*given, "--match", "last scale not"])
    assert drawn == ["dense", "-1"]
    script.main(given)
    assert drawn == ["dense", "-1", "dense", "-2", "-3"]
    script.main(given)
    assert len(drawn) == 5
    written = json.loads(out.read_text())
    assert list(written["rows"]) == [f"scales: last {what}not run" for what in ("scale ", "two ", "three ")]
    assert (written["split"], written["batch"], written["dense"]["overall"]) == ("test", 6, 0.9)
    assert "passed" not in written["rows"]["scales: last two not run"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"dense": 0.9, "rows": 3}
    with pytest.raises(ValueError, match="was measured with n=6, not 8"):
        script.main([*given, "--n", "8"])
    # A bench of the same options gives the rows their time.
    card = bench("NVIDIA H200", timed("x", 12.3, {"preset": "lossless", "scale_exit": "-2"}))
    ((group, head, rows),) = ablations(written, [card, bench("other", timed("y", 1.0))])
    assert (group, head[-1]) == ("scales", "ms, NVIDIA H200")
    assert [cells[-1] for cells in rows] == ["-", "12.3", "-"]


@pytest.mark.parametrize(("groups", "expected"), [("scales,rowz", "unknown group 'rowz'")])
def test_unknown_groups(drawn, groups, expected, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["--groups", groups, "--out", str(tmp_path / "x.json")])
    assert expected in capsys.readouterr().err
