import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toprovar_fx.checkpoints import load_into, module_bytes, read_checkpoint
from toprovar_fx.errors import CheckpointError
from toprovar_fx.loading.headers import read_header
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity

CONFIG = InfinityConfig(
    depth=2,
    width=16,
    heads=2,
    bits=4,
    text_channels=8,
    text_maxlen=6,
    block_chunks=2,
    text_pool_heads=2,
    rope_grid=4,
)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def state_of(seed=0):
    torch.manual_seed(seed)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(4), "b.weight": torch.randn(64, 5)}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_single_files(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(state_of(), path) if suffix == ".safetensors" else torch.save(state_of(), path)
    assert_same(read_checkpoint(path), state_of())


def test_old_torch_format(tmp_path):
    torch.save(state_of(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "old.pth"), state_of())


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"trainer": {"gpt_fsdp": state, "epoch": 3}, "args": "text"},
        lambda state: {"vae": state, "epoch": 3},
        lambda state: {"vae": state, "ema": {"other": torch.zeros(1)}},
        lambda state: {"ema": state},
        lambda state: {"trainer": {"gpt_fsdp": state, "gpt_ema_fsdp": {"other": torch.zeros(1)}}},
        lambda state: {"trainer": {"gpt_ema_fsdp": state}},
        lambda state: {"state_dict": state},
        lambda state: {**state, "step": 7},
    ],
)
def test_official_nestings_are_opened(tmp_path, nest):
    torch.save(nest(state_of()), tmp_path / "model.pth")
    assert_same(read_checkpoint(tmp_path / "model.pth"), state_of())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("indexed", [True, False])
def test_folders_of_shards(tmp_path, suffix, indexed):
    state = state_of()
    parts = [{"a.weight": state["a.weight"]}, {"a.bias": state["a.bias"], "b.weight": state["b.weight"]}]
    names = [f"pytorch_model-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name) if suffix == ".safetensors" else torch.save(part, tmp_path / name)
    if indexed:
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (tmp_path / f"pytorch_model{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (tmp_path / f"leftover{suffix}").write_bytes(b"not in the index")
    assert_same(read_checkpoint(tmp_path), state)
    if indexed:
        (tmp_path / names[1]).unlink()
        with pytest.raises(CheckpointError, match=r"00002-of-00002.* of 2 shards missing"):
            read_checkpoint(tmp_path)


def test_broken_index_and_repeated_keys(tmp_path):
    save_file(state_of(), tmp_path / "one.safetensors")
    save_file(state_of(), tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="in more than one shard"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected JSON with a weight_map"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.97])
def test_truncated_files(tmp_path, suffix, fraction):
    path = tmp_path / f"model{suffix}"
    save_file(state_of(), path) if suffix == ".safetensors" else torch.save(state_of(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match="damaged or truncated") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path, old_format, wrapped):
    trap = tmp_path / "executed"
    content = {"vae": state_of(), "extra": Payload(trap)} if wrapped else Payload(trap)
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match="pickled objects: refused") as error:
        read_checkpoint(tmp_path / "evil.pth")
    assert "\n" not in str(error.value)
    assert not trap.exists()


def test_plain_pickle_is_refused_and_never_runs(tmp_path):
    trap = tmp_path / "executed"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Payload(trap), protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(tmp_path / "evil.bin")
    assert not trap.exists()


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"unknown kind '\.onnx'"):
        read_checkpoint(tmp_path / "model.onnx")
    (tmp_path / "pointer.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read_checkpoint(tmp_path / "pointer.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"step": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_checkpoint(tmp_path / "empty.pth")


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.empty(3, device="meta"), "tensors of the meta device: expected data"),
        (nn.Parameter(torch.empty(3, device="meta")), "tensors of the meta device: expected data"),
        (torch.eye(3).to_sparse(), "a sparse tensor, b: expected dense ones"),
        (torch.eye(3).to_sparse_csr(), "a sparse tensor, b: expected dense ones"),
    ],
    ids=["meta", "meta parameter", "sparse", "sparse rows"],
)
def test_tensors_without_data_and_sparse_ones_are_refused(tmp_path, tensor, message, old_format):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(2), "b": tensor}, path, _use_new_zipfile_serialization=not old_format)
    for read in (read_checkpoint, read_header):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_loading_copies_and_casts():
    source, target = Infinity(CONFIG), Infinity(CONFIG).to(torch.bfloat16)
    load_into(target, source.state_dict())
    for key, value in target.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, source.state_dict()[key].bfloat16())


def test_loading_fills_a_meta_module_without_its_constant_buffers():
    source = Infinity(CONFIG)
    state = {key: value for key, value in source.state_dict().items() if "zero_k_bias" not in key}
    with torch.device("meta"):
        target = Infinity(CONFIG)
    load_into(target, state)
    assert_same(dict(target.state_dict()), dict(source.state_dict()))
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_constant_buffers_may_be_absent_or_superfluous():
    model = Infinity(CONFIG)
    state = {key: value for key, value in model.state_dict().items() if "zero_k_bias" not in key}
    load_into(Infinity(CONFIG), {**state, "lvl_1L": torch.zeros(1, 5)})


def test_every_kind_of_misfit_is_named_with_its_count():
    model = Infinity(CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    for layer in (0, 1):
        for name in ("ada_gss", "sa.q_bias", "ca.v_bias"):
            del state[f"block_chunks.{layer}.module.0.{name}"]
    state["surplus"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(3, 3)
    state["pos_start"] = torch.zeros(1, 1, 16, dtype=torch.int64)
    with pytest.raises(CheckpointError) as error:
        load_into(model, state, name="the transformer")
    message = str(error.value)
    assert "\n" not in message
    assert "does not fit the transformer" in message
    assert "1 mis-shaped (head.weight (3, 3) instead of (8, 16))" in message
    assert "1 of wrong dtype (pos_start torch.int64 instead of torch.float32)" in message
    assert "6 missing (block_chunks.0.module.0.ada_gss" in message
    assert "and 3 more)" in message
    assert "1 superfluous (surplus)" in message
    assert_same(dict(model.state_dict()), before)


def test_not_strict_accepts_absences_but_no_wrong_shape():
    model = Infinity(CONFIG)
    load_into(model, {"pos_start": torch.full((1, 1, 16), 3.0), "surplus": torch.zeros(1)}, strict=False)
    assert model.pos_start.eq(3).all()
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load_into(model, {"pos_start": torch.zeros(1, 1, 4)}, strict=False)


@pytest.mark.parametrize("rows", [2, 6, 9])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_unconditional_text_is_cut_or_completed(rows, device):
    with torch.device(device):
        model = Infinity(CONFIG)
    own = model.cfg_uncond.detach().clone()
    state = Infinity(CONFIG).state_dict()
    state["cfg_uncond"] = torch.arange(rows).view(-1, 1).expand(-1, 8).float()
    load_into(model, state)
    assert torch.equal(model.cfg_uncond[:rows], state["cfg_uncond"][:6])
    if device == "cpu":
        assert torch.equal(model.cfg_uncond[rows:], own[rows:])


def test_memory_is_known_before_loading():
    with torch.device("meta"):
        module = nn.Linear(10, 10)
        module.register_buffer("index", torch.zeros(5, dtype=torch.int64))
    assert module_bytes(module) == 110 * 4 + 40
    assert module_bytes(module, torch.bfloat16) == 110 * 2 + 40
