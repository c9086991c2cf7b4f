from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from toprovar_fx.__main__ import main
from toprovar_fx.cli import explain as module
from toprovar_fx.cli.variants import Variant

from .cli_fakes import FakePipeline
from .small_pipelines import DEPTH, six_scales


def explain(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    assert main(["explain", "a star", *arguments, "--device", "cpu", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_a_real_generation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    torch.compiler.reset()
    monkeypatch.setattr(module, "load", six_scales)
    settings = ("lowering=eager", "keep={-1: 0.25}", "protected_layers_first=1", "protected_layers_last=1")
    arguments = [part for setting in settings for part in ("--option", setting)]
    lines, result = explain(*arguments, "--html", str(page), capsys=capsys)
    report = result["explanation"]
    step = next(graph for graph in report["graphs"] if graph["kind"] == "scale step")
    passes = {row["name"]: row for row in step["passes"]}
    assert passes["outline_blocks"]["layers"] == list(range(DEPTH))
    assert passes["token_gather"]["layers"] == [1, 2, 3]
    assert [fallback["reason"] for fallback in report["fallbacks"]] == ["ONE_TOKEN"]
    assert result["scales"] == [[side, side] for side in (1, 2, 3, 4, 6, 8)]
    for row in result["layers"]:
        pruned = row["layer"] in (1, 2, 3)
        assert row["kept_share"] == [None, 1.0, 1.0, 1.0, 1.0, 0.25 if pruned else 1.0]
        assert row["entropy_nats"][0] is None
        assert all(0 < value < 6 for value in row["entropy_nats"][1:]), (
            "every layer is measured at every scale"
        )
        assert 0 <= row["role"] <= 1
    names = [region["name"] for region in step["regions"]]
    assert any("all tokens" in name for name in names)
    assert any("K tokens" in name for name in names)
    assert all(region["compile_s"] == [] for region in step["regions"]), "nothing is compiled as traced"
    assert any("1-3" in line and "token_gather" in line for line in lines)
    (generation,) = report["generations"]
    assert generation["flops"] < generation["flops_dense"]
    assert "token_gather" in page.read_text()


def test_without_a_graph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "load", lambda *_: FakePipeline())
    monkeypatch.setattr(Variant, "pipeline", lambda self, pipe: pipe)
    lines, result = explain(capsys=capsys)
    assert result["explanation"]["graphs"] == []
    assert result["layers"] == []
    assert any("no graph of this backend" in line for line in lines)


def test_layers_are_read_off_the_generations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "load", lambda *_: FakePipeline(pruned=True))
    monkeypatch.setattr(Variant, "pipeline", lambda self, pipe: pipe)
    _, result = explain(capsys=capsys)
    assert result["layers"][1] == {
        "layer": 1,
        "role": 0.25,
        "entropy_nats": [None, None],
        "kept_share": [1.0, 0.5],
    }


def test_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["explain", "a star", "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err
