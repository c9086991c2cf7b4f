"""T5 through transformers: a small random encoder and tokenizer that the test writes to disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.official import SHORT, write_2b
from toprovar_fx.__main__ import main
from toprovar_fx.errors import CheckpointError, OptionError, PromptError
from toprovar_fx.loading.memory import memory_needed
from toprovar_fx.models.text_encoder import T5TextEncoder
from toprovar_fx.pipeline import InfinityPipeline

WORDS = ["a", "cat", "on", "red", "sofa", "under", "two", "moons"]


def write_t5(folder: Path, channels: int = 16) -> Path:
    """A whole T5, decoder included, as flan-t5-xl's folder has it, and a tokenizer of eight words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=16, d_model=channels, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5") / "flan-t5-xl")


@torch.no_grad()
def test_prompts_of_different_lengths_are_encoded_as_each_alone(folder):
    encoder = T5TextEncoder.from_folder(folder)
    prompts = ["a cat", "a red cat on a red sofa under two moons", "moons"]
    together = encoder.encode_prompts(prompts)
    assert together.lengths.tolist() == [3, 11, 2]
    assert together.features.shape == (3, 11, 16)
    for row, prompt in enumerate(prompts):
        alone = encoder.encode_prompts([prompt])
        length = int(alone.lengths[0])
        torch.testing.assert_close(together.features[row, :length], alone.features[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_too_long_is_refused_or_cut_with_a_warning(folder):
    """Cut as upstream cuts it, truncation=True and max_length=512: the end token stays the last one."""
    words = ["cat"] * 600
    encoder = T5TextEncoder.from_folder(folder)
    with pytest.raises(PromptError, match="prompt of 601 tokens: expected at most 512"):
        encoder.encode_prompts([" ".join(words)])
    encoder.truncate = True
    with pytest.warns(UserWarning, match="601 tokens cut to 512"):
        cut = encoder.encode_prompts([" ".join(words)])
    assert cut.lengths.tolist() == [512]
    assert torch.equal(cut.features, encoder.encode_prompts([" ".join(words[:511])]).features)
    for empty in ("", " \n"):
        with pytest.raises(PromptError, match="empty"):
            encoder.encode_prompts(["a", empty])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_price(folder, dtype):
    from toprovar_fx.loading.memory import t5_bytes

    encoder = T5TextEncoder.from_folder(folder, dtype=dtype).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {dtype}
    assert t5_bytes(folder, dtype) == sum(parameter.nbytes for parameter in encoder.parameters())


def test_a_folder_with_its_text_encoder_draws_prompts(tmp_path):
    expected = write_2b(tmp_path)
    write_t5(tmp_path / "flan-t5-xl")
    assert "text encoder" in str(memory_needed(tmp_path, "cpu"))
    pipe = InfinityPipeline.from_pretrained(tmp_path, device="cpu")
    pipe.schedule = SHORT
    text = pipe.encode_prompts(["a cat", "two moons under a sofa"])
    drawn = pipe(["a cat", "two moons under a sofa"], seed=3).images
    assert np.array_equal(drawn, expected(text, seed=3).images)
    assert main(["convert", str(tmp_path), str(tmp_path / "own")]) == 0
    own = InfinityPipeline.from_pretrained(tmp_path / "own", device="cpu")
    own.schedule = SHORT
    assert np.array_equal(own(["a cat", "two moons under a sofa"], seed=3).images, drawn)


def test_folders_that_are_no_text_encoder(tmp_path):
    folder = write_t5(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="does not exist"):
        T5TextEncoder.from_folder(tmp_path / "nothing")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-50])
    with pytest.raises(CheckpointError, match="cannot be loaded") as error:
        T5TextEncoder.from_folder(folder)
    assert "\n" not in str(error.value)
    from safetensors.torch import load, save_file

    state = load(content)
    del state["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing or mis-shaped, such as encoder"):
        T5TextEncoder.from_folder(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        T5TextEncoder.from_folder(folder)


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch, capsys):
    """Runs where transformers is not installed, too."""
    write_2b(tmp_path / "weights")
    (tmp_path / "weights" / "t5").mkdir()
    config = {"model_type": "t5", "d_model": 16}
    (tmp_path / "weights" / "t5" / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OptionError, match=r"pip install 'toprovar-fx\[text\]'"):
        InfinityPipeline.from_pretrained(tmp_path / "weights", device="cpu")
    command = ["generate", "a cat", "--model", str(tmp_path / "weights"), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("toprovar: error: the T5 text encoder needs transformers: pip install")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    write_2b(tmp_path)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 512}))
    with pytest.raises(CheckpointError, match="expected d_model 16"):
        InfinityPipeline.from_pretrained(tmp_path, device="cpu")
