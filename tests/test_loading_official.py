"""`from_pretrained` of folders with official names: what it finds, what it draws, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.official import (
    SMALL_2B,
    SMALL_8B,
    models,
    official_state,
    vae_config,
    vae_state,
    write_2b,
    write_8b,
    write_shards,
)
from toprovar_fx.errors import CheckpointError
from toprovar_fx.loading.headers import read_header
from toprovar_fx.loading.layouts import find_parts
from toprovar_fx.loading.sizes import transformer_config
from toprovar_fx.loading.sizes import vae_config as vae_config_of
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.text import TextFeatures
from toprovar_fx.models.vae import VAE_CONFIGS, ImageVAE
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.schedules import Schedule


def text():
    generator = torch.Generator().manual_seed(3)
    return TextFeatures(torch.randn(2, 5, 16, generator=generator), torch.tensor([5, 3]))


def assert_draws_like(path, expected, schedule=None):
    pipe = InfinityPipeline.from_pretrained(path, device="cpu")
    pipe.schedule = expected.schedule
    assert pipe.config == expected.config
    assert pipe.vae.config == expected.vae.config
    output, wanted = pipe(text(), seed=5), expected(text(), seed=5)
    assert np.array_equal(output.images, wanted.images)
    assert output.images.std() > 0


def test_a_folder_like_2b_takes_the_autoencoder_it_was_trained_with(tmp_path):
    assert_draws_like(tmp_path, write_2b(tmp_path))
    assert_draws_like(tmp_path / "infinity_2b_reg.pth", write_2b(tmp_path))


def test_a_folder_like_8b_of_shards_and_patches(tmp_path):
    expected = write_8b(tmp_path)
    assert_draws_like(tmp_path, expected)
    assert_draws_like(tmp_path / "infinity_8b_weights", expected)
    # Beside the shards, files that are no part of the model are not opened.
    (tmp_path / "notes.bin").write_bytes(b"no checkpoint")
    assert_draws_like(tmp_path / "infinity_8b_weights", expected)


def test_training_checkpoints_and_safetensors_and_short_names(tmp_path):
    transformer, vae = models(SMALL_2B)
    expected = InfinityPipeline(transformer, vae, None, Schedule.infinity().first(3))
    names = vae_state(vae)
    short = {key.replace(".conv.", ".").replace(".norm.", "."): value for key, value in names.items()}
    torch.save({"trainer": {"gpt_fsdp": official_state(transformer)}, "iter": 7}, tmp_path / "ar-ckpt.pth")
    torch.save({"vae": {**short, "discriminator.w": torch.zeros(1)}}, tmp_path / "vae.pth")
    assert_draws_like(tmp_path, expected)
    (tmp_path / "ar-ckpt.pth").unlink()
    save_file(official_state(transformer), tmp_path / "infinity.safetensors")
    assert_draws_like(tmp_path, expected)
    assert_draws_like(tmp_path / "infinity.safetensors", expected)


def test_dtype_and_schedule(tmp_path):
    write_8b(tmp_path)
    pipe = InfinityPipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in pipe.vae.parameters()} == {torch.bfloat16}
    assert pipe.schedule == Schedule.infinity()
    assert pipe.text_encoder is None
    (tmp_path / "infinity_8b_weights").rename(tmp_path / "infinity_8b_512x512_weights")
    assert find_parts(tmp_path).schedule == Schedule.infinity("0.25M")


@pytest.mark.parametrize("name", ["infinity-2b", "infinity-8b"])
def test_the_full_sizes_are_read_off_their_shapes(name):
    """On the meta device, with the official text length and a longer one."""
    from toprovar_fx.loading.headers import TensorInfo

    with torch.device("meta"):
        transformer, vae = Infinity(CONFIGS[name]), ImageVAE(VAE_CONFIGS[name])

    def header(module):
        return {
            key: TensorInfo(tuple(tensor.shape), tensor.dtype, Path())
            for key, tensor in module.state_dict().items()
        }

    patchify = name == "infinity-8b"
    assert transformer_config(header(transformer), patchify=patchify) is CONFIGS[name]
    assert vae_config_of(header(vae), patchify=patchify) is VAE_CONFIGS[name]


def test_other_sizes_are_read_off_their_shapes(tmp_path):
    transformer, vae = models(SMALL_8B)
    torch.save(official_state(transformer), tmp_path / "t.pth")
    torch.save(vae_state(vae), tmp_path / "v.pth")
    assert transformer_config(read_header(tmp_path / "t.pth"), patchify=True) == SMALL_8B
    assert vae_config_of(read_header(tmp_path / "v.pth"), patchify=True) == vae_config(SMALL_8B)


def change(file: Path, edit) -> None:
    state = torch.load(file, weights_only=True)
    edit(state.get("vae", state))
    torch.save(state, file)


def fault_missing(folder):
    change(folder / "infinity_2b_reg.pth", lambda state: state.pop("block_chunks.1.module.0.ffn.fc2.weight"))


def fault_extra(folder):
    change(folder / "infinity_2b_reg.pth", lambda state: state.update({"head.wieght": torch.zeros(1)}))


def fault_misspelt(folder):
    change(folder / "infinity_2b_reg.pth", lambda state: state.update({"head_bias": state.pop("head.bias")}))


def fault_shape(folder):
    change(folder / "infinity_2b_reg.pth", lambda state: state.update({"head.weight": torch.zeros(3, 3)}))


def fault_dtype(folder):
    change(
        folder / "infinity_2b_reg.pth",
        lambda state: state.update({"head.bias": torch.zeros(16, dtype=torch.int64)}),
    )


def fault_vae_shape(folder):
    change(
        folder / "infinity_vae_d32reg.pth",
        lambda state: state.update({"decoder.conv_out.conv.bias": torch.zeros(4)}),
    )


def fault_no_size(folder):
    change(folder / "infinity_2b_reg.pth", lambda state: state.pop("lvl_embed.weight"))


def fault_size(folder):
    change(
        folder / "infinity_2b_reg.pth",
        lambda state: state.update({"block_chunks.0.module.0.sa.scale_mul_1H11": torch.zeros(1, 5, 1, 1)}),
    )


def fault_no_transformer(folder):
    (folder / "infinity_2b_reg.pth").unlink()


def fault_two_transformers(folder):
    shutil.copy(folder / "infinity_2b_reg.pth", folder / "infinity_3b.pth")


def fault_no_vae(folder):
    for file in folder.glob("infinity_vae*"):
        file.unlink()


def fault_two_vaes(folder):
    (folder / "infinity_2b_reg.pth").rename(folder / "mine.pth")


def fault_wrong_vae(folder):
    fault_no_vae(folder)
    torch.save({"vae": vae_state(models(SMALL_8B)[1])}, folder / "infinity_vae_d2.pth")
    change(
        folder / "infinity_2b_reg.pth", lambda state: state.update({"word_embed.weight": torch.zeros(32, 9)})
    )


def fault_truncated(folder):
    file = folder / "infinity_2b_reg.pth"
    file.write_bytes(file.read_bytes()[:-1000])


def fault_pickled(folder):
    torch.save({"model": {"weights": Path("x")}}, folder / "infinity_2b_reg.pth")


def fault_empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def fault_unknown_kind(folder):
    fault_empty(folder)
    (folder / "infinity_2b_reg.ckpt").write_bytes(b"x")


FAULTS = {
    fault_missing: r"1 missing \(block_chunks\.1\.module\.0\.ffn\.fc2\.weight\)",
    fault_extra: r"1 superfluous \(head\.wieght, nearest is head\.weight\)",
    fault_misspelt: r"1 missing \(head\.bias\); 1 superfluous \(head_bias, nearest is head\.bias\)",
    fault_shape: r"head\.weight \(3, 3\) instead of \(16, 32\)",
    fault_dtype: r"head\.bias torch\.int64 instead of torch\.float32",
    fault_vae_shape: r"autoencoder: 1 mis-shaped \(decoder\.conv_out\.conv\.bias \(4,\) instead of \(3,\)\)",
    fault_no_size: r"lacks lvl_embed\.weight, from which a size",
    fault_size: r"contradict each other: width 32 with 5 heads",
    fault_no_transformer: r"no Infinity transformer: found infinity_vae_d32\.pth, .*expected .*2b_reg",
    fault_two_transformers: r"2 transformers \(infinity_2b_reg\.pth, infinity_3b\.pth\): expected",
    fault_no_vae: r"no image autoencoder for infinity_2b_reg\.pth: found none, expected one with 8 latent",
    fault_two_vaes: r"2 autoencoders that fit mine\.pth \(infinity_vae_d32\.pth, infinity_vae_d32reg\.pth\)",
    fault_wrong_vae: r"found infinity_vae_d2\.pth with 2, expected one with 9 latent channels",
    fault_truncated: r"infinity_2b_reg\.pth is damaged or truncated",
    fault_pickled: r"pickled objects: refused",
    fault_empty: r"found no checkpoint, expected .*infinity_8b_weights",
    fault_unknown_kind: r"found no checkpoint",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.removeprefix("fault_"))
def test_what_does_not_fit_is_named_before_any_weight_is_read(tmp_path, monkeypatch, fault):
    folder = tmp_path / "weights"
    write_2b(folder)
    fault(folder)

    def never(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("toprovar_fx.official_parts.read_checkpoint", never)
    with pytest.raises(CheckpointError, match=FAULTS[fault]) as error:
        InfinityPipeline.from_pretrained(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    write_8b(tmp_path)
    (tmp_path / "infinity_8b_weights" / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.bin of 3 shards missing"):
        InfinityPipeline.from_pretrained(tmp_path)


def test_a_longer_unconditional_text_is_cut(tmp_path):
    transformer, vae = models(SMALL_2B)
    state = official_state(transformer)
    write_shards(tmp_path / "infinity_weights", {**state, "cfg_uncond": state["cfg_uncond"].repeat(2, 1)})
    torch.save({"vae": vae_state(vae)}, tmp_path / "infinity_vae.pth")
    pipe = InfinityPipeline.from_pretrained(tmp_path, device="cpu")
    assert pipe.config.text_maxlen == 48  # of no named model, so the file's own
    assert torch.equal(pipe.transformer.cfg_uncond[:24], transformer.cfg_uncond)
