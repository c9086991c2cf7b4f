"""The price of a model, from headers alone, against what the loaded model really holds."""

from __future__ import annotations

import pytest
import torch

from tests.official import write_2b, write_8b
from toprovar_fx.__main__ import main
from toprovar_fx.checkpoints import module_bytes
from toprovar_fx.loading import memory
from toprovar_fx.loading.memory import memory_needed, memory_of_named
from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.pipeline import InfinityPipeline


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", [write_2b, write_8b])
def test_weights_and_cache_cost_what_was_said(tmp_path, write, dtype):
    write(tmp_path)
    need = memory_needed(tmp_path, "cpu", dtype, images=3)
    pipe = InfinityPipeline.from_pretrained(tmp_path, "cpu", dtype)
    assert need.weights_bytes == {
        "transformer": sum(tensor.nbytes for tensor in pipe.transformer.state_dict().values()),
        "autoencoder": module_bytes(pipe.vae),
    }
    cache = KVCache(CacheSizes.of(pipe.config, 6, pipe.schedule.ends[-1], dtype), "meta")
    assert need.cache_bytes == sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert need.total_bytes == sum(need.weights_bytes.values()) + need.cache_bytes
    assert "of 3 images" in str(need)


def test_the_shipped_model_and_saved_pipelines(tmp_path):
    need = memory_needed("scenes", "cpu")
    pipe = InfinityPipeline.from_pretrained("scenes", "cpu")
    held = [module_bytes(module) for module in (pipe.transformer, pipe.vae, pipe.text_encoder)]
    assert list(need.weights_bytes.values()) == held
    pipe.save_pretrained(tmp_path / "copy.safetensors", shard_bytes=20_000_000)
    assert memory_needed(tmp_path / "copy.safetensors", "cpu").weights_bytes == need.weights_bytes


def test_official_sizes_without_any_file():
    """2.205 and 8.376 billion parameters; 7.71 GiB of cache in fp32 and bf16 mixed is 5.14 in bf16."""
    two = memory_of_named("infinity-2b", "cpu", torch.bfloat16)
    assert two.weights_bytes["transformer"] == pytest.approx(2 * 2.205e9, rel=1e-3)
    assert two.cache_bytes / 2**30 == pytest.approx(5.14, abs=0.01)
    eight = memory_of_named("infinity-8b", "cpu", torch.bfloat16)
    assert eight.weights_bytes["transformer"] == pytest.approx(2 * 8.376e9, rel=1e-3)
    assert eight.cache_bytes / 2**30 == pytest.approx(11.24, abs=0.01)


def test_too_little_memory_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    assert str(memory_of_named("infinity-2b", "cpu")).endswith("1.0 MiB free, which is not enough")
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert "free" not in str(memory_of_named("infinity-2b", "cpu"))


def test_the_command_line_says_it_before_loading(tmp_path, monkeypatch, capsys):
    write_2b(tmp_path / "weights")
    said = []

    def load(*_, **arguments):
        said.append((capsys.readouterr().err, arguments["dtype"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("toprovar_fx.pipeline.InfinityPipeline.from_pretrained", load)
    command = ["bench", "--variants", "eager", "--model", str(tmp_path / "weights"), "--device", "cpu"]
    assert main([*command, "--dtype", "bfloat16"]) == 130
    ((line, dtype),) = said
    assert dtype == torch.bfloat16
    assert line.startswith("toprovar: ") and line.count("\n") == 1
    assert "needed on cpu in bfloat16: transformer 0.2 MiB, autoencoder" in line
