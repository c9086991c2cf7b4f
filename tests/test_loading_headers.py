"""Headers say what a file holds without reading it, and a damaged file is known by its header."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from toprovar_fx.checkpoints import check_fit
from toprovar_fx.errors import CheckpointError
from toprovar_fx.loading.headers import read_header, safetensors_header

STATE = {
    "weight": torch.arange(12.0).view(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "index": torch.arange(3),
    "empty": torch.zeros(0, 2),
}


def write(path, kind, state=None):
    state = STATE if state is None else state
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"trainer": {"gpt_fsdp": state}}, path, _use_new_zipfile_serialization=kind == "zip")


def described(header):
    return {name: (info.shape, info.dtype) for name, info in header.items()}


@pytest.mark.parametrize(("suffix", "kind"), [("safetensors", "safetensors"), ("pth", "zip"), ("pth", "old")])
def test_shapes_and_dtypes_of_every_format(tmp_path, suffix, kind):
    path = tmp_path / f"model.{suffix}"
    write(path, kind)
    header = read_header(path)
    assert described(header) == {key: (tuple(value.shape), value.dtype) for key, value in STATE.items()}
    assert {info.file for info in header.values()} == {path}
    assert header["weight"].bytes_as(None) == 48
    assert header["weight"].bytes_as(torch.bfloat16) == 24
    assert header["index"].bytes_as(torch.bfloat16) == 24  # integers keep theirs


@pytest.mark.parametrize(("suffix", "kind"), [("safetensors", "safetensors"), ("pth", "zip"), ("pth", "old")])
def test_a_header_is_read_without_the_data(tmp_path, suffix, kind):
    """16 MiB of data, less than one of them in memory, and the same answer where the data are garbage."""
    path = tmp_path / f"model.{suffix}"
    write(path, kind, {"big": torch.zeros(4, 2**20)})
    resident = resident_bytes()
    header = read_header(path)
    grown = resident_bytes() - resident
    assert header["big"].shape == (4, 2**20)
    assert grown < 8 * 2**20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("suffix", "kind"), [("safetensors", "safetensors"), ("pth", "zip"), ("pth", "old")])
@given(share=st.floats(0, 0.999))
def test_every_truncation_is_noticed(tmp_path_factory, suffix, kind, share):
    path = tmp_path_factory.mktemp("cut") / f"model.{suffix}"
    # Most of this file is data, so most cuts fall into them.
    write(path, kind, {"big": torch.zeros(3000), "small": torch.ones(2)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"damaged or truncated") as error:
        read_header(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("suffix", "kind"), [("safetensors", "safetensors"), ("pth", "zip"), ("pth", "old")])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_byte_is_one_error_or_none(tmp_path_factory, suffix, kind, place, flip):
    """Whatever byte is wrong, the answer is a header or this package's error, never another exception."""
    path = tmp_path_factory.mktemp("flip") / f"model.{suffix}"
    write(path, kind)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= flip
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(info.shape, tuple) for info in header.values())


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}},
        {"x": {"dtype": "Q7", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2]}},
        {"x": [1]},
        {"x": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}},
        [1],
        {"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
    ],
)
def test_headers_that_contradict_themselves(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        safetensors_header(path)


def test_a_shard_without_an_index_is_missed_by_its_number(tmp_path):
    for number in (1, 3):
        save_file({f"w{number}": torch.ones(1)}, tmp_path / f"model-{number:05d}-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="number 2 of 3 shards missing"):
        read_header(tmp_path)


def test_a_header_is_checked_like_a_state_dict(tmp_path):
    """Everything that does not fit is known before any data is read, and a misspelt key gets its nearest."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    save_file(state, tmp_path / "good.safetensors")
    check_fit(module, read_header(tmp_path / "good.safetensors"))
    state["0.wieght"] = state.pop("0.weight")
    state["1.bias"] = torch.zeros(4)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError) as error:
        check_fit(module, read_header(tmp_path / "bad.safetensors"), name="the model")
    message = str(error.value)
    assert "1 mis-shaped (1.bias (4,) instead of (3,))" in message
    assert "1 missing (0.weight)" in message
    assert "1 superfluous (0.wieght, nearest is 0.weight)" in message
