"""Both phases of training end to end at a tiny size: they export, stop and go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toprovar_fx.scenes.sampler import sample_scenes
from toprovar_fx.training import sample_eval
from toprovar_fx.training.compiling import Compilation
from toprovar_fx.training.latents import CaptionedLatents, LatentCache
from toprovar_fx.training.program import main
from toprovar_fx.training.settings import RunSettings, TransformerSettings, tiny_transformer
from toprovar_fx.training.tokenizer import load_tokenizer
from toprovar_fx.training.transformer import TransformerTrainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny = ["--device", "cpu", "--tiny", "--workdir", str(folder / "work"), "--export", str(folder)]
    assert main(["tokenizer", *tiny, "--seconds", "1.5", "--log-every", "0.5"]) == 0
    return folder


def test_tokenizer_phase_exports_and_goes_on(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads((tokenizer / "vae" / "config.json").read_text())
    assert first["steps"] > 0
    vae = load_tokenizer(tokenizer, CPU)
    assert vae(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    tiny = ["--device", "cpu", "--tiny", "--workdir", str(tokenizer / "work")]
    assert main(["tokenizer", *tiny, "--seconds", "2.5", "--evaluate", "6", "--workers", "1"]) == 0
    again, score = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert 0 <= score["overall"] <= 1
    assert (tokenizer / "work" / "reconstructions.png").stat().st_size > 0
    assert again["steps"] > first["steps"]
    assert 2.5 <= again["seconds"] < 10


def trainer(tokenizer: Path, workdir: Path, **options: Any) -> TransformerTrainer:
    run = RunSettings(seconds=3600.0, compile=False)
    settings = replace(tiny_transformer(TransformerSettings()), **options)
    return TransformerTrainer(run, settings, load_tokenizer(tokenizer, CPU), workdir, CPU)


def cache_of(tokenizer: Path) -> CaptionedLatents:
    scenes = sample_scenes(8, device=CPU, seed=0)
    latents = torch.randn(8, 16, 32, 32, generator=torch.Generator().manual_seed(0)).half()
    return CaptionedLatents(LatentCache(latents, scenes), pool=16, seed=0)


def test_layout_steps_learn(tokenizer: Path, tmp_path: Path) -> None:
    ours, data = trainer(tokenizer, tmp_path), cache_of(tokenizer)
    losses = [float(ours.step(0, data)["layout loss"]) for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(2), abs=0.02)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.05


def test_every_kind_trains_every_parameter(tokenizer: Path, tmp_path: Path) -> None:
    ours, data = trainer(tokenizer, tmp_path, dropped=0.5), cache_of(tokenizer)
    for kind in range(3):
        before = {name: value.clone() for name, value in ours.pair.named_parameters()}
        for _ in range(4):  # enough for both a dropped and a kept prompt
            ours.step(kind, data)
        still = [name for name, value in ours.pair.named_parameters() if torch.equal(value, before[name])]
        assert not still


def test_out_of_memory_halves_only_its_own_batch(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, data = trainer(tokenizer, tmp_path), cache_of(tokenizer)
    step = ours.step

    def limited(kind: int, source: CaptionedLatents) -> dict[str, torch.Tensor]:
        if ours.batches[kind] > 1:
            raise torch.OutOfMemoryError("device full")
        return step(kind, source)

    monkeypatch.setattr(ours, "step", limited)
    assert ours.guarded_step(2, data) is None
    assert ours.batches == [2, 2, 1]
    assert ours.guarded_step(2, data) is not None


def test_failing_compiler_does_not_end_the_run(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler here")

    ours, data = trainer(tokenizer, tmp_path), cache_of(tokenizer)
    ours.compilation = Compilation(True, backend=broken)
    ours.compilation.wrap_forwards(ours.pair.transformer.blocks())
    costs = ours.measure_costs(data)
    assert len(costs) == 3
    assert min(costs) > 0
    assert not ours.compilation.enabled
    assert "no compiler here" in capsys.readouterr().err


def test_transformer_phase_stops_resumes_and_evaluates(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample_eval, "SWEEP", ((2.0, 1.0), (3.0, 0.5)))
    common = ["transformer", "--device", "cpu", "--tiny", "--workdir", str(tmp_path / "work"), "--vae"]
    common += [str(tokenizer), "--export", str(tmp_path), "--seconds", "4", "--log-every", "0.5"]
    assert main([*common, "--session-seconds", "2.5"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not first["complete"]
    assert main([*common, "--evaluate", "6", "--sweep", "6", "--workers", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["complete"]
    assert lines[0]["steps"] > first["steps"]
    assert len(lines[0]["last"]["full bits"]) == 10
    assert set(lines[1]["categories"]) == {
        "single_object",
        "two_objects",
        "counting",
        "colors",
        "position",
        "color_attribution",
    }
    assert len(lines[1]["sweep"]) == 2
    assert (tmp_path / "samples.png").stat().st_size > 0
    # Weights alone start another run.
    fresh = ["transformer", "--device", "cpu", "--tiny", "--workdir", str(tmp_path / "other"), "--vae"]
    fresh += [str(tokenizer), "--init-from", str(tmp_path), "--seconds", "1"]
    assert main(fresh) == 0


def test_missing_tokenizer_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transformer", "--device", "cpu", "--tiny", "--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tokenizer")
    assert error.count("\n") == 1
