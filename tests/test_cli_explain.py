from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from toprovar_fx import InfinityPipeline, Schedule
from toprovar_fx.__main__ import main
from toprovar_fx.cli import explain as module
from toprovar_fx.cli import tables
from toprovar_fx.cli.variants import Variant
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity

from .cli_fakes import FakePipeline

SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
DEPTH = 5


def small_pipeline(model: str, device: str) -> InfinityPipeline:
    torch.manual_seed(0)
    whole = InfinityPipeline.untrained("scenes", device=device)
    config = replace(CONFIGS["scenes"], depth=DEPTH, width=64, heads=2)
    return InfinityPipeline(Infinity(config).eval(), whole.vae, whole.text_encoder, SCHEDULE)


def explain(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    assert main(["explain", "a star", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_a_real_generation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(module, "load", small_pipeline)
    settings = ("lowering=eager", "keep={-1: 0.25}", "protected_layers_first=1", "protected_layers_last=1")
    arguments = [part for setting in settings for part in ("--option", setting)]
    lines, result = explain(*arguments, capsys=capsys)
    passes = {row["name"]: row for row in result["passes"]}
    assert passes["outline_blocks"]["layers"] == list(range(DEPTH))
    assert passes["token_gather"]["layers"] == [1, 2, 3]
    assert any("ONE_TOKEN" in reason for row in passes.values() for reason in row["fallbacks"])
    assert result["scales"] == [[side, side] for side in (1, 2, 3, 4, 6, 8)]
    for row in result["layers"]:
        pruned = row["layer"] in (1, 2, 3)
        assert row["kept_share"] == [None, 1.0, 1.0, 1.0, 1.0, 0.25 if pruned else 1.0]
        assert row["entropy_nats"][0] is None
        assert all(0 < value < 6 for value in row["entropy_nats"][1:]), (
            "every layer is measured at every scale"
        )
        assert 0 <= row["role"] <= 1
    names = [graph["name"] for graph in result["graphs"]]
    assert any("all tokens" in name for name in names)
    assert any("K tokens" in name for name in names)
    assert all(graph["compile_s"] == [] for graph in result["graphs"]), "nothing is compiled as traced"
    assert any("1-3" in line and "token_gather" in line for line in lines)
    assert result["report"]["flops"] < result["report"]["flops_dense"]


def test_without_a_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "load", lambda model, device: FakePipeline())
    monkeypatch.setattr(Variant, "pipeline", lambda self, pipe: pipe)
    lines, result = explain(capsys=capsys)
    assert result["report"] is None
    assert result["layers"] == []
    assert any("no graph of this backend" in line for line in lines)


def test_fallbacks_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "load", lambda model, device: FakePipeline(pruned=True))
    monkeypatch.setattr(Variant, "pipeline", lambda self, pipe: pipe)
    lines, result = explain(capsys=capsys)
    assert any("ran dense: layer 0: masked attention" in line for line in lines)
    assert result["layers"][1] == {
        "layer": 1,
        "role": 0.25,
        "entropy_nats": [None, None],
        "kept_share": [1.0, 0.5],
    }


@pytest.mark.parametrize(
    ("numbers", "text"), [([], "none"), ([3], "3"), ([0, 1, 2], "0-2"), ([0, 2, 3, 7], "0, 2-3, 7")]
)
def test_layers_in_short(numbers: list[int], text: str) -> None:
    assert tables._ranges(numbers) == text
