from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from toprovar_fx import Profile
from toprovar_fx.__main__ import main
from toprovar_fx.cli import calibrate as module
from toprovar_fx.cli import explain as explaining

from .small_pipelines import DEPTH, SCHEDULE, six_scales

SETTINGS = ["--option", "min_scale=2", "--option", "lowering=eager", "--device", "cpu"]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("a star\n\n  a red circle\na blue square\n")
    return path


def test_a_real_calibration_and_its_use(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    torch.compiler.reset()
    for command in (module, explaining):
        monkeypatch.setattr(command, "load", six_scales)
    arguments = ["calibrate", "scenes", "--prompts", str(prompts), "--n", "2", "--plots", "plots", "--json"]
    assert main([*arguments, *SETTINGS]) == 0
    lines = capsys.readouterr().out.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    profile = Profile.load("profile.json")
    assert profile.layers == DEPTH
    assert profile.schedule == SCHEDULE
    assert profile.observed.images == result["prompts"] == 2
    assert result["decisions"] == profile.to_json()["decisions"]
    assert any("profile: profile.json" in line for line in lines)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "entropy_and_rho.png",
        "layer_roles.png",
        "entropy_maps.png",
    }
    assert all((tmp_path / path).read_bytes().startswith(b"\x89PNG") for path in result["plots"])
    torch.compiler.reset()
    use = ["explain", "a star", "--option", "profile=profile.json", "--option", "lowering=eager"]
    assert main([*use, "--device", "cpu", "--json"]) == 0
    explained = json.loads(capsys.readouterr().out.splitlines()[-1])
    for row in explained["layers"]:
        for scale, counts in profile.kept.items():
            assert row["kept_share"][scale] == pytest.approx(counts[row["layer"]] / SCHEDULE.tokens[scale])
    assert main([*use, "--option", "tau=0.5"]) == 2
    assert "tau=0.5: the profile 'profile.json' holds for tau=0.4 alone" in capsys.readouterr().err


REFUSED = {
    "no prompts": (["calibrate", "scenes"], "--prompts"),
    "no such file": (["calibrate", "--prompts", "nothing.txt"], "cannot read prompts from 'nothing.txt'"),
    "a folder": (["calibrate", "--prompts", "."], "cannot read prompts from '.'"),
    "an empty file": (["calibrate", "--prompts", "empty.txt"], "'empty.txt' holds no prompt"),
    "too many": (
        ["calibrate", "--prompts", "prompts.txt", "--n", "4"],
        "--n is 4, expected an integer in 1 .. 3",
    ),
    "an unknown word": (["calibrate", "--prompts", "dragon.txt"], "dragon"),
    "explicit ratios": (
        ["calibrate", "--prompts", "prompts.txt", "--preset", "fast"],
        "nothing to calibrate",
    ),
    "an unknown model": (["calibrate", "untrained:infinity-3b", "--prompts", "prompts.txt"], "unknown model"),
    "a folder to write": (
        ["calibrate", "--prompts", "prompts.txt", "--out", "."],
        "a folder, expected a file",
    ),
    "no folder": (["calibrate", "--prompts", "prompts.txt", "--out", "empty.txt/p.json"], "is a file"),
    "no folder for plots": (["calibrate", "--prompts", "prompts.txt", "--plots", "empty.txt"], "is a file"),
    "no batch": (["calibrate", "--prompts", "prompts.txt", "--batch", "0"], "--batch is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_loading(
    case: str, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(module, "load", load)
    (prompts.parent / "empty.txt").write_text("\n \n")
    (prompts.parent / "dragon.txt").write_text("a dragon\n")
    arguments, message = REFUSED[case]
    assert main([*arguments, *([] if "no prompts" in case else ["--device", "cpu"])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (prompts.parent / "profile.json").exists()


def test_a_scale_that_the_model_does_not_have_is_refused_before_it_draws(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*_: object, **__: object) -> None:
        raise AssertionError("drew")

    monkeypatch.setattr(module, "load", six_scales)
    monkeypatch.setattr("toprovar_fx.calibration.calibrate.draw", draw)
    given = ["calibrate", "scenes", "--prompts", str(prompts), "--option", "scale_exit=6", "--device", "cpu"]
    assert main(given) == 2
    assert "scale_exit=6: expected an index from -6 to 5; nearest valid: 5" in capsys.readouterr().err
    assert not (prompts.parent / "profile.json").exists()
