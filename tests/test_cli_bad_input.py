"""Every wrong input: exit code 2, one line on standard error that says what was expected, nothing written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toprovar_fx.__main__ import main

PROMPT = "a red circle"
HUGE = str(2**63)

REFUSED_BEFORE_LOADING = {
    "unknown word": ["generate", "a red circl"],
    "empty prompt": ["generate", ""],
    "blank prompt": ["generate", " \n "],
    "one bad prompt of two": ["generate", PROMPT, "a dragon"],
    "too many words": ["generate", "a " * 24 + "circle"],
    "no prompt": ["generate"],
    "negative seed": ["generate", PROMPT, "--seed", "-1"],
    "huge seed": ["generate", PROMPT, "--seed", HUGE],
    "last seed overflows": ["generate", PROMPT, PROMPT, "--seed", str(2**63 - 1)],
    "seed is no number": ["generate", PROMPT, "--seed", "one"],
    "unknown preset": ["generate", PROMPT, "--preset", "balancd"],
    "unknown option": ["generate", PROMPT, "--option", "taus=0.5"],
    "value out of range": ["generate", PROMPT, "--option", "tau=7"],
    "no assignment": ["generate", PROMPT, "--option", "tau"],
    "negative guidance": ["generate", PROMPT, "--cfg", "-2"],
    "temperature nan": ["generate", PROMPT, "--tau", "nan"],
    "unknown baseline": ["generate", PROMPT, "--compare", "--against", "fast"],
    "unknown device": ["generate", PROMPT, "--device", "gpu"],
    "unknown model": ["generate", PROMPT, "--model", "untrained:infinity-3b"],
    "no png": ["generate", PROMPT, "--out", "picture.jpg"],
    "two images, one file": ["generate", PROMPT, PROMPT, "--out", "picture.png"],
    "unwritable folder": ["generate", PROMPT, "--out", "a-file/picture.png"],
    "unknown argument": ["generate", PROMPT, "--sed", "1"],
    "unknown command": ["generat", PROMPT],
    "eval of nothing": ["eval", "--n", "0"],
    "eval of a negative number": ["eval", "--n", "-6"],
    "eval with an empty batch": ["eval", "--batch", "0"],
    "eval of an unknown preset": ["eval", "--preset", "quick"],
    "eval with an overflowing seed": ["eval", "--seed", str(2**63 - 5)],
    "bench of an unknown variant": ["bench", "--variants", "eager,quick"],
    "bench without rounds": ["bench", "--repeats", "0"],
    "bench of no image": ["bench", "--batch", "0"],
    "explain of an unknown word": ["explain", "a dragon"],
    "explain of an unknown option": ["explain", "--option", "nix=1"],
}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("kept")
    return tmp_path


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("toprovar: error: ")
    assert captured.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return captured.err


@pytest.mark.parametrize("arguments", REFUSED_BEFORE_LOADING.values(), ids=REFUSED_BEFORE_LOADING.keys())
def test_refused_before_loading(
    arguments: list[str], inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("toprovar_fx.pipeline.InfinityPipeline.from_pretrained", never)
    monkeypatch.setattr("toprovar_fx.pipeline.InfinityPipeline.untrained", never)
    refused(arguments, inside, capsys)


@pytest.mark.parametrize(
    "name", ["missing.safetensors", "truncated.safetensors", "pickled.safetensors", "pickled.pt"]
)
@pytest.mark.parametrize("command", ["generate", "eval", "bench", "explain"])
def test_bad_model_files(name: str, command: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = inside / name
    if name.startswith("truncated"):
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif name.startswith("pickled"):
        path.write_bytes(pickle.dumps({"x": [1, 2, 3]}))
    words = [PROMPT] if command in ("generate", "explain") else []
    refused([command, *words, "--model", str(path)], inside, capsys)


def test_the_module_exits_with_the_code() -> None:
    command = [sys.executable, "-m", "toprovar_fx", "generate", PROMPT, "--seed", "-1"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
