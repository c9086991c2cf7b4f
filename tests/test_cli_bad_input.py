"""Every wrong input: exit code 2, one line on standard error that says what was expected, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.official import write_2b
from toprovar_fx.__main__ import main
from toprovar_fx.loading.headers import read_header
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.pipeline import InfinityPipeline

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
    "no model": ["generate", PROMPT, "--model", ""],
    "unknown dtype": ["generate", PROMPT, "--dtype", "float64"],
    "a name that is too long": ["generate", PROMPT, "--out", "n" * 300 + ".png"],
    "no png": ["generate", PROMPT, "--out", "picture.jpg"],
    "no path": ["generate", PROMPT, "--out", ""],
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
    "eval in an unknown dtype": ["eval", "--dtype", "fp8"],
    "bench in an unknown dtype": ["bench", "--dtype", "half"],
    "explain in an unknown dtype": ["explain", "--dtype", "int8"],
    "eval into a table without a path": ["eval", "--table", "", "--preset", "fast"],
    "explain into a folder": ["explain", "--html", "a-folder"],
    "explain into no path": ["explain", "--html", ""],
    "calibrate into a folder": ["calibrate", "--prompts", "prompts.txt", "--out", "a-folder"],
    "calibrate into a pipe": ["calibrate", "--prompts", "prompts.txt", "--out", "a-pipe"],
    "calibrate into no path": ["calibrate", "--prompts", "prompts.txt", "--out", ""],
    "plots into no path": ["calibrate", "--prompts", "prompts.txt", "--plots", ""],
    "gallery into no path": ["gallery", PROMPT, "--preset", "fast", "--out", ""],
    "report into no path": ["report", "", "a-file"],
    "tune into a folder": ["tune", "--target", "3x", "--out", "a-folder.json"],
    "tune with a negative seed": ["tune", "--target", "3x", "--seed", "-1"],
    "tune with a seed that its sampler refuses": ["tune", "--target", "3x", "--seed", str(2**32)],
    "convert of nothing": ["convert"],
    "convert into nothing": ["convert", "a-file"],
    "convert of no path": ["convert", "", "out"],
    "convert into no path": ["convert", "a-file", " "],
    "convert of a missing file": ["convert", "nothing.pth", "out"],
    "convert of an unknown file": ["convert", "a-file", "out"],
    "convert to an unknown dtype": ["convert", "a-file", "out", "--dtype", "int8"],
    "convert to files of no size": ["convert", "a-file", "out", "--max-shard-bytes", "0"],
    "convert to files of an unknown unit": ["convert", "a-file", "out", "--max-shard-bytes", "5XB"],
    "convert to files of a huge size": ["convert", "a-file", "out", "--max-shard-bytes", "9" * 400],
    "explain of an unknown word": ["explain", "a dragon"],
    "explain of an unknown option": ["explain", "--option", "nix=1"],
}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("kept")
    (tmp_path / "prompts.txt").write_text(PROMPT)
    for folder in ("a-folder", "a-folder.json"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "a-pipe")
    return tmp_path


def test_what_is_wrong_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["generat"], "unknown command 'generat'"),
        (["bench", "--budgets", "x"], "--budgets 'x': expected dense over pruned FLOPs"),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"toprovar: error: {expected}")


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


def wrong_shape(state: dict[str, torch.Tensor]) -> None:
    state["transformer.head.weight"] = torch.zeros(3, 3)


def wrong_dtype(state: dict[str, torch.Tensor]) -> None:
    state["transformer.head.weight"] = state["transformer.head.weight"].long()


def wrong_name(state: dict[str, torch.Tensor]) -> None:
    state["transformer.head.wieght"] = state.pop("transformer.head.weight")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (wrong_shape, "head.weight (3, 3) instead of (32, 64)"),
        (wrong_dtype, "head.weight torch.int64 instead of torch.float32"),
        (wrong_name, "1 missing (head.weight); 1 superfluous (head.wieght, nearest is head.weight)"),
        (None, "configuration in bad.safetensors is not valid"),
    ],
)
def test_pipeline_files_that_do_not_fit(edit, expected, inside: Path, capsys) -> None:
    """The error is the only line: the memory is not announced for what will not load."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    pipe = InfinityPipeline.untrained("scenes", device="cpu")
    small = replace(CONFIGS["scenes"], depth=1, width=64, heads=2)
    pipe.transformer = Infinity(small)
    (path,) = pipe.save_pretrained("good.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    if edit is None:
        metadata["config"] = metadata["config"].replace("depth", "depht")
    else:
        edit(state)
    save_file(state, "bad.safetensors", metadata=metadata)
    assert expected in refused(["generate", PROMPT, "--model", "bad.safetensors"], inside, capsys)


def test_official_weights_that_do_not_fit(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_2b(inside / "weights")
    line = refused(["generate", "a cat", "--model", "weights"], inside, capsys)
    assert "no text encoder, expected the folder of its T5" in line
    for command in (["bench", "--model", "weights"], ["convert", "weights", "out"]):
        (inside / "weights" / "infinity_2b_reg.pth").write_bytes(b"half")
        assert "damaged or truncated" in refused(command, inside, capsys)


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("command", [["bench", "--model", "t.pth"], ["convert", "t.pth", "out"]])
def test_pickled_code_never_runs(
    command: list[str], zipped: bool, protocol: int, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Trap()}, "t.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings(record=True) as caught:  # one of torch's would be a second line
        warnings.simplefilter("always")
        assert "refused" in refused(command, inside, capsys)
    assert caught == []


@pytest.mark.parametrize("command", ["convert", "generate"])
def test_folders_that_cannot_be_written(
    command: str, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_2b(inside / "weights")
    arguments = ["convert", "weights"] if command == "convert" else ["generate", PROMPT, "--out"]
    below = "a-file/out" if command == "convert" else "a-file/out.png"
    assert "'a-file' is a file" in refused([*arguments, below], inside, capsys)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert "Read-only file system" in refused([*arguments, "new"], inside, capsys)


def test_a_full_disk(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_2b(inside / "weights")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    assert "needed, 0.0 MiB free" in refused(["convert", "weights", "out"], inside, capsys)


def test_a_conversion(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_2b(inside / "weights")
    command = ["convert", "weights", "out", "--dtype", "bfloat16", "--max-shard-bytes", "60KB", "--json"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert "every hash verified" in lines[0]
    assert result["is_pipeline"] and result["written"] == list(result["files"])
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["written"] == []
    dtypes = {info.dtype for info in read_header("out/transformer").values()}
    assert dtypes == {torch.bfloat16}


def test_the_module_exits_with_the_code() -> None:
    command = [sys.executable, "-m", "toprovar_fx", "generate", PROMPT, "--seed", "-1"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
