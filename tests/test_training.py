"""The parts of training: schedule, mixture, objectives, storage, fallbacks."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toprovar_fx.checkpoints import read_checkpoint
from toprovar_fx.errors import CheckpointError, OptionError
from toprovar_fx.scenes.sampler import sample_scenes
from toprovar_fx.schedules import Schedule
from toprovar_fx.training import storage
from toprovar_fx.training.clock import Clock, learning_rate, stop_on_signal
from toprovar_fx.training.compiling import Compilation
from toprovar_fx.training.ema import Average
from toprovar_fx.training.latents import CaptionedLatents, LatentCache
from toprovar_fx.training.mixture import Mixture, shares
from toprovar_fx.training.objective import Objective, bit_loss
from toprovar_fx.training.optimiser import adamw
from toprovar_fx.training.program import kinds_of
from toprovar_fx.training.reconstruction import psnr, reconstruction_loss
from toprovar_fx.training.settings import STEP_KINDS

CPU = torch.device("cpu")


def test_learning_rate_warms_up_stays_and_falls_to_the_floor() -> None:
    rates = [learning_rate(i / 100, 1.0, warmup=0.1, decay=0.4) for i in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:41] == [1.0] * 31
    assert rates[41:] == sorted(rates[41:], reverse=True)
    assert rates[-1] == pytest.approx(0.03)


def test_clock_counts_over_processes_and_pauses() -> None:
    clock = Clock(100.0, elapsed=40.0)
    assert clock.fraction == 0.4
    clock.start()
    clock.pause()
    assert 40.0 <= clock.elapsed < 41.0
    assert not clock.over
    assert Clock(10.0, elapsed=10.0).complete
    limited = Clock(100.0, session_seconds=0.0)
    assert limited.over
    assert not limited.complete


def test_a_signal_ends_the_loop_and_the_handler_comes_back() -> None:
    clock, before = Clock(100.0), signal.getsignal(signal.SIGTERM)
    with stop_on_signal(clock):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert clock.over
    assert signal.getsignal(signal.SIGTERM) is before


def test_mixture_meets_the_shares_of_time() -> None:
    costs = [0.07, 0.1, 0.13]
    mixture, spent = Mixture(STEP_KINDS, costs), Counter[int]()
    steps = 4000
    for step in range(steps):
        spent[(kind := mixture.next(step / steps))] += 1
        assert kind < 3
    total = sum(costs[kind] * count for kind, count in spent.items())
    for kind, settings in enumerate(STEP_KINDS):
        # Cheap kinds come more often early, so the mean over steps is not quite the mean over time.
        assert spent[kind] * costs[kind] / total == pytest.approx(settings.share, abs=0.02)
    assert shares(STEP_KINDS, 0.0)[0] > shares(STEP_KINDS, 1.0)[0]
    assert sum(shares(STEP_KINDS, 0.3)) == pytest.approx(1.0)


def test_kinds_of_the_command_line() -> None:
    kinds = kinds_of(STEP_KINDS, "1,0,0", "8,4,2")
    assert [kind.share for kind in kinds] == [1, 0, 0]
    assert [kind.batch for kind in kinds] == [8, 4, 2]
    for wrong in ("1,2", "a,b,c", "0,0,0", "-1,1,1"):
        with pytest.raises(OptionError):
            kinds_of(STEP_KINDS, wrong, None)


def test_bit_loss_is_the_weighted_two_class_cross_entropy() -> None:
    tokens = Schedule.named("scenes").tokens
    objective = Objective.build(tokens, 3, 0.5, CPU)
    logits, targets = torch.randn(4, 14, 10), torch.rand(4, 14, 5) > 0.5
    loss, accuracy = bit_loss(logits, targets, objective.weights)
    each = nn.functional.cross_entropy(logits.view(-1, 2), targets.long().view(-1), reduction="none").view(
        4, 14, 5
    )
    scale_of = torch.tensor([0] + [1] * 4 + [2] * 9)
    weights = torch.tensor([1.0, 0.5, 1 / 3])[scale_of]
    expected = (each.mean((0, 2)) * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, expected)
    right = (logits.view(4, 14, 5, 2).argmax(-1) == targets).float()
    torch.testing.assert_close(
        objective.averaging @ accuracy,
        torch.stack([right[:, scale_of == scale].mean() for scale in range(3)]),
    )


def test_reconstruction_loss_notices_colour_and_edges() -> None:
    target = torch.zeros(1, 3, 8, 8)
    grey, red, stripes = target + 0.1, target.clone(), target.clone()
    red[:, 0] += 0.3
    stripes[..., ::2] += 0.2
    losses = [float(reconstruction_loss(image, target)[0]) for image in (grey, red, stripes)]
    # All three have the same mean absolute error.
    assert losses[0] < losses[1]
    assert losses[0] < losses[2]
    _, squares = reconstruction_loss(grey, target)
    assert float(psnr(squares)) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4)


def test_average_follows_and_restores() -> None:
    module = nn.Linear(2, 2)
    average = Average(module, memory=1.0)
    with torch.no_grad():
        module.weight.fill_(3.0)
    for _ in range(200):
        average.update(0.1)
    torch.testing.assert_close(average.values["weight"], torch.full((2, 2), 3.0))
    other = Average(nn.Linear(2, 2), memory=1.0)
    other.load_state_dict(average.state_dict())
    fresh = nn.Linear(2, 2)
    other.copy_to(fresh)
    torch.testing.assert_close(fresh.weight, module.weight)


def test_only_linear_weights_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(5, 3))
    decayed, rest = adamw(module, peak=1e-3, weight_decay=0.1, betas=(0.9, 0.9)).param_groups
    assert [tuple(value.shape) for value in decayed["params"]] == [(3, 2)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_compilation_falls_back_to_eager(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    torch.compiler.reset()
    compilation = Compilation(True, backend=broken)
    pure = compilation.wrap_pure(lambda x: x + 1)
    assert torch.equal(pure(torch.ones(2)), torch.full((2,), 2.0))
    assert "compilation given up" in capsys.readouterr().err
    layer = nn.Linear(2, 2)
    compilation.wrap_forwards([layer])
    with pytest.raises(Exception, match="no compiler here") as caught:
        layer(torch.ones(1, 2))
    assert compilation.give_up(caught.value)
    assert layer(torch.ones(1, 2)).shape == (1, 2)
    assert not compilation.give_up(caught.value)


def test_weights_are_sharded_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.randn(8, 8), "b": torch.randn(8, 8).t(), "c": torch.arange(3)}
    assert [file.name for file in storage.export_weights(tmp_path, tensors, torch.float16)] == [
        "model.safetensors"
    ]
    monkeypatch.setattr(storage, "SHARD_BYTES", 200)
    files = storage.export_weights(tmp_path, tensors, torch.float16)
    assert len(files) == 2
    joined = read_checkpoint(tmp_path)
    assert joined["c"].dtype == torch.int64
    torch.testing.assert_close(joined["b"], tensors["b"].half())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_state_is_plain_data_only(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert storage.load_state(path, CPU) is None
    storage.save_state(path, {"steps": 3, "model": {"w": torch.ones(2)}})
    state = storage.load_state(path, CPU)
    assert state is not None
    assert state["steps"] == 3
    torch.save({"model": Path("x")}, path)
    with pytest.raises(CheckpointError):
        storage.load_state(path, CPU)


def test_draws_pair_latents_with_their_own_captions() -> None:
    scenes = sample_scenes(6, device=CPU, seed=0)
    # A latent that tells which scene it is.
    latents = torch.arange(6.0).half().view(6, 1, 1, 1).expand(6, 2, 4, 4).contiguous()
    data = CaptionedLatents(LatentCache(latents, scenes), pool=8, seed=0)
    shapes = set()
    for batch in (3, 3, 8, 5):
        z, ids, lengths = data.next(batch)
        assert z.dtype == torch.float32
        assert z.shape == (batch, 2, 4, 4)
        assert torch.equal((ids != 0).sum(1), lengths)
        shapes.add(tuple(ids.shape[1:]))
    assert len(shapes) == 1
