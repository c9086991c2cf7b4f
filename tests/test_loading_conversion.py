"""Conversion to safetensors: the same model, continued after any interruption, never half a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.official import SMALL_2B, models, official_state, write_2b, write_8b
from tests.test_loading_official import text
from toprovar_fx import whole_files
from toprovar_fx.checkpoints import read_checkpoint
from toprovar_fx.errors import CheckpointError, OptionError, OutputError
from toprovar_fx.loading import conversion, writing
from toprovar_fx.loading.conversion import convert
from toprovar_fx.loading.conversion_plan import plan_conversion
from toprovar_fx.loading.headers import read_header, safetensors_header
from toprovar_fx.pipeline import InfinityPipeline

SHARD_BYTES = 60_000


class StoppedError(Exception):
    pass


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def transformer_file(folder):
    """One `.pth` of a transformer that converts into several files."""
    folder.mkdir(exist_ok=True)
    torch.save({"trainer": {"gpt_fsdp": official_state(models(SMALL_2B)[0])}}, folder / "infinity.pth")
    return folder / "infinity.pth"


@pytest.mark.parametrize("write", [write_2b, write_8b])
def test_a_converted_folder_draws_the_same(tmp_path, write):
    expected = write(tmp_path / "official")
    result = convert(tmp_path / "official", tmp_path / "own", max_shard_bytes=SHARD_BYTES)
    assert result.is_pipeline
    assert set(result.written) == set(result.files)
    shards = sorted((tmp_path / "own" / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(file.stat().st_size < SHARD_BYTES + 20_000 for file in shards)
    pipe = InfinityPipeline.from_pretrained(tmp_path / "own", device="cpu")
    assert (pipe.config, pipe.vae.config) == (expected.config, expected.vae.config)
    pipe.schedule = expected.schedule
    assert np.array_equal(pipe(text(), seed=2).images, expected(text(), seed=2).images)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tensors_are_the_same_or_cast(tmp_path, zipped, dtype):
    base = torch.arange(24.0).view(4, 6) / 7
    state = {
        "whole": base,
        "turned": base.t(),
        "part": base[1:3],
        "nan": torch.tensor([float("nan"), 1]),
        "index": torch.arange(5),
        "scalar": torch.tensor(2.5),
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "a.pth", tmp_path / "out", dtype=dtype, max_shard_bytes=100)
    found = read_checkpoint(tmp_path / "out")
    assert found.keys() == state.keys()
    for key, value in state.items():
        wanted = value.to(dtype) if dtype and value.is_floating_point() else value
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=0, equal_nan=True)


def test_sharded_sources_and_indexes(tmp_path):
    expected = write_8b(tmp_path / "official")
    folder = tmp_path / "official" / "infinity_8b_weights"
    convert(folder, tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    convert(folder, tmp_path / "many", max_shard_bytes=SHARD_BYTES)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        v.nbytes for v in expected.transformer.state_dict().values()
    )
    for key, name in index["weight_map"].items():
        assert key in safetensors_header(tmp_path / "many" / name)[0]
    assert read_header(tmp_path / "many").keys() == expected.transformer.state_dict().keys()


def test_it_continues_after_every_interruption_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """Stop at every rename in turn: nothing that is there is half, nothing finished is written again."""
    source = transformer_file(tmp_path / "official")
    whole = convert(source, tmp_path / "whole", max_shard_bytes=SHARD_BYTES)
    count = len(whole.files)
    assert count >= 4
    target = tmp_path / "target"
    real = os.replace
    runs = 0
    while runs < 3 * count:
        runs += 1
        left = [1]

        def replace(partial, path, left=left):
            if Path(path).suffix == ".safetensors":
                left[0] -= 1
                if left[0] < 0:
                    raise StoppedError
            real(partial, path)

        monkeypatch.setattr(os, "replace", replace)
        before = {
            name: (target / name).stat().st_mtime_ns for name in whole.files if (target / name).exists()
        }
        try:
            result = convert(source, target, max_shard_bytes=SHARD_BYTES)
        except StoppedError:
            result = None
        monkeypatch.setattr(os, "replace", real)
        assert all((target / name).stat().st_mtime_ns == time for name, time in before.items())
        for name in whole.files:
            if (target / name).exists():
                assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        if result is not None:
            break
        with pytest.raises(CheckpointError, match="has not finished"):
            read_checkpoint(target)
    assert runs == count  # one more file each time
    assert contents(target) == contents(tmp_path / "whole")


def test_it_continues_after_being_killed(tmp_path):
    """SIGKILL in the middle of a file: the leftover is no checkpoint, and goes away."""
    source = transformer_file(tmp_path / "official")
    script = (
        "import os, signal, sys\n"
        "from toprovar_fx import whole_files\n"
        "from toprovar_fx.loading import conversion, writing\n"
        "def killed(path, write):\n"
        "    if path.name.startswith('model-00002'):\n"
        "        path.with_name(whole_files.PARTIAL + path.name).write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    whole(path, write)\n"
        "whole, writing.write_whole = writing.write_whole, killed\n"
        f"conversion.convert(sys.argv[1], sys.argv[2], max_shard_bytes={SHARD_BYTES})\n"
    )
    target = tmp_path / "target"
    command = [sys.executable, "-c", script, str(source), str(target)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [file.name for file in target.glob(f"{whole_files.PARTIAL}*")] == [
        name for name in os.listdir(target) if "00002" in name
    ]
    with pytest.raises(CheckpointError, match="has not finished"):
        read_checkpoint(target)
    result = convert(source, target, max_shard_bytes=SHARD_BYTES)
    assert len(result.written) == len(result.files) - 1
    assert not list(target.glob(f"{whole_files.PARTIAL}*"))
    assert read_checkpoint(target).keys() == read_checkpoint(source).keys()


def test_a_file_that_was_damaged_meanwhile_is_written_again(tmp_path):
    source = transformer_file(tmp_path / "official")
    first = convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    again = convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    assert again.written == ()
    name = sorted(first.files)[1]
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    repaired = convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    assert repaired.written == (name,)
    assert repaired.files == first.files


def test_what_comes_back_different_is_noticed(tmp_path, monkeypatch):
    source = transformer_file(tmp_path / "official")
    monkeypatch.setattr(writing, "_same_bits", lambda left, right: False)
    with pytest.raises(OutputError, match="came back different"):
        convert(source, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_another_target_source_or_setting_is_refused(tmp_path):
    source = transformer_file(tmp_path / "official")
    out = tmp_path / "out"
    convert(source, out)
    before = contents(out)
    with pytest.raises(OutputError, match="another dtype"):
        convert(source, out, dtype=torch.float16)
    with pytest.raises(OutputError, match="another max_shard_bytes"):
        convert(source, out, max_shard_bytes=9)
    os.utime(source, (1, 1))
    with pytest.raises(OutputError, match="as it is now"):
        convert(source, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"holds diary\.txt, expected a new or empty folder"):
        convert(source, tmp_path / "full")
    with pytest.raises(OutputError, match="into itself"):
        convert(tmp_path / "official", tmp_path / "official")
    with pytest.raises(OutputError, match="it is a file"):
        convert(source, tmp_path / "full" / "diary.txt")
    (out / "conversion.json").write_text("{")
    with pytest.raises(OutputError, match="cannot continue"):
        convert(source, out)
    assert {**contents(out), "conversion.json": before["conversion.json"]} == before


def test_room_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    source = transformer_file(tmp_path / "official")
    plan = plan_conversion(source, None, SHARD_BYTES)
    free = [plan.nbytes]
    usage = type("Usage", (), {"free": property(lambda self: free[0])})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage())
    with pytest.raises(OutputError, match=r"MiB needed, .* free on its disk"):
        convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    assert not (tmp_path / "out").exists()
    free[0] *= 100
    convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    free[0] = 2**20  # what is there already needs no room
    assert convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES).written == ()


def test_a_disk_that_fills_up_leaves_whole_files_only(tmp_path, monkeypatch):
    source = transformer_file(tmp_path / "official")
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="No space left on device"):
        convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    for file in (tmp_path / "out").glob("*.safetensors"):
        safetensors_header(file)
    assert not list((tmp_path / "out").glob(f"{whole_files.PARTIAL}*"))
    assert convert(source, tmp_path / "out", max_shard_bytes=SHARD_BYTES).written


def test_sources_that_are_refused(tmp_path):
    write_2b(tmp_path / "official")
    with pytest.raises(OptionError, match="max_shard_bytes 0"):
        convert(tmp_path / "official", tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "out")
    save_file({"a": torch.zeros(2)}, tmp_path / "p.safetensors", metadata={"config": "{}"})
    with pytest.raises(CheckpointError, match="pipeline file already"):
        convert(tmp_path / "p.safetensors", tmp_path / "out")
    (tmp_path / "official" / "infinity_vae_d32reg.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        convert(tmp_path / "official", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source = transformer_file(tmp_path / "official")
    real = conversion.read_tensors
    monkeypatch.setattr(conversion, "read_tensors", lambda file: {**real(file), "pos_start": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="changed while it was converted: pos_start"):
        convert(source, tmp_path / "out")


def test_a_text_encoder_is_copied(tmp_path):
    write_2b(tmp_path / "official")
    encoder = tmp_path / "official" / "flan-t5-xl"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 16}))
    save_file({"shared.weight": torch.ones(3, 16)}, encoder / "model.safetensors")
    torch.save({"shared.weight": torch.ones(3, 16)}, encoder / "pytorch_model.bin")
    (encoder / "pytorch_model.bin.index.json").write_text("{}")  # of weights that are not copied
    (encoder / "spiece.model").write_bytes(b"words")
    convert(tmp_path / "official", tmp_path / "out", dtype=torch.bfloat16)
    copied = contents(tmp_path / "out" / "text_encoder")
    assert copied == {name: data for name, data in contents(encoder).items() if ".bin" not in name}


def test_a_pipeline_file_is_whole_or_not_there(tmp_path, monkeypatch):
    pipe = InfinityPipeline.from_pretrained("scenes", device="cpu")
    path = tmp_path / "model.safetensors"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        pipe.save_pretrained(path)
    assert list(tmp_path.iterdir()) == []
