import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toprovar_fx.errors import CheckpointError, OptionError, PromptError, ScheduleError, SeedError
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.text import TextFeatures
from toprovar_fx.models.text_encoder import T5TextEncoder
from toprovar_fx.models.vae import ImageVAE, VAEConfig
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.sampling import noise
from toprovar_fx.schedules import Schedule

from .small_pipelines import PROMPTS, SMALL, SQUARE, TALL, build


@pytest.mark.parametrize(
    ("schedule", "patchify", "side"),
    [(SQUARE, False, (8, 8)), (TALL, False, (12, 6)), (TALL, True, (24, 12))],
)
def test_shapes_of_the_output(schedule, patchify, side):
    output = build(schedule, patchify)(PROMPTS, seed=3)
    assert output.images.shape == (3, *side, 3)
    assert output.images.dtype == np.uint8
    assert [tuple(bits.shape) for bits in output.bits] == [(3, tokens, 8) for tokens in schedule.tokens]
    assert output.summed_codes.shape == (3, 2 if patchify else 8, side[0] // 2, side[1] // 2)
    assert set(output.latency_ms) == {"text", "scales", "decode", "total"}
    assert output.latency_ms["total"] > 0


@torch.no_grad()
def plain_generation(pipe, prompt, seed, cfg, tau, top_p):
    """One image by the steps of Infinity's inference, without cache, batch or joint guided rows."""
    model, schedule = pipe.transformer, pipe.schedule
    patch = 2 if model.config.patchify else 1
    depth = model.config.latent_bits
    text = pipe.text_encoder.encode_prompts([prompt])
    length = int(text.lengths[0])
    features = text.features[:, :length]
    sides = [(height * patch, width * patch) for height, width in schedule.sides]
    model.set_schedule(schedule)
    inputs = []
    summed = torch.zeros(1, depth, *sides[-1])
    for scale, (height, width) in enumerate(schedule.sides):
        logits = []
        for source in (features, model.cfg_uncond[None, :length]):
            context = model.prepare_text(source, text.lengths)
            logits.append(model.forward_train(inputs, context)[:, -height * width :])
        guided = (cfg * logits[0] + (1 - cfg) * logits[1]) / tau
        probability = guided.unflatten(-1, (-1, 2)).softmax(-1)[..., 1]
        probability = torch.where(probability <= 1 - top_p, 0.0, probability)
        probability = torch.where(probability >= top_p, 1.0, probability)
        bits = noise(torch.tensor([seed]), scale, height * width, model.config.bits) < probability
        codes = (bits.float() * 2 - 1) / math.sqrt(depth)
        codes = codes.permute(0, 2, 1).reshape(1, -1, height, width)
        codes = F.pixel_shuffle(codes, patch)[:, :, None]
        summed = summed + F.interpolate(codes, size=(1, *sides[-1]), mode="trilinear")[:, :, 0]
        if scale + 1 < len(schedule):
            resized = F.interpolate(summed[:, :, None], size=(1, *sides[scale + 1]), mode="trilinear")[
                :, :, 0
            ]
            inputs.append(F.pixel_unshuffle(resized, patch).flatten(2).permute(0, 2, 1))
    return summed


@pytest.mark.parametrize(("schedule", "patchify"), [(SQUARE, False), (TALL, True)])
def test_generation_follows_the_plain_steps(schedule, patchify):
    pipe = build(schedule, patchify)
    output = pipe(PROMPTS[:2], seed=[5, 11], cfg=2.5, tau=0.8, top_p=0.9)
    for row, (prompt, seed) in enumerate(zip(PROMPTS[:2], (5, 11), strict=True)):
        expected = plain_generation(pipe, prompt, seed, 2.5, 0.8, 0.9)
        torch.testing.assert_close(output.summed_codes[row : row + 1], expected, atol=1e-5, rtol=0)


def test_an_image_depends_on_its_own_seed_and_prompt_alone():
    pipe = build()
    together = pipe(PROMPTS, seed=[4, 9, 4])
    for row, (prompt, seed) in enumerate(zip(PROMPTS, (4, 9, 4), strict=True)):
        alone = pipe(prompt, seed=seed)
        for batched, single in zip(together.bits, alone.bits, strict=True):
            assert torch.equal(batched[row], single[0])
        assert np.abs(together.images[row].astype(int) - alone.images[0]).max() <= 1


def test_one_seed_counts_up_over_the_prompts():
    pipe = build()
    counted, listed = pipe(PROMPTS, seed=6), pipe(PROMPTS, seed=[6, 7, 8])
    assert np.array_equal(counted.images, listed.images)
    assert not np.array_equal(counted.images, pipe(PROMPTS, seed=7).images)


def test_without_guidance_half_of_the_rows_run():
    pipe = build()
    rows = []
    run = pipe.transformer.forward
    pipe.transformer.forward = lambda hidden, *rest: rows.append(len(hidden)) or run(hidden, *rest)
    pipe("a red circle", cfg=1)
    pipe("a red circle", cfg=2)
    assert rows == [1] * 4 + [2] * 4


def test_features_may_be_given_and_their_padding_does_not_matter():
    pipe = build()
    text = pipe.encode_prompts(PROMPTS)
    longest = int(text.lengths.max())
    short = TextFeatures(text.features[:, :longest], text.lengths)
    expected = pipe(PROMPTS, seed=1)
    for features in (text, short):
        output = pipe(features, seed=1)
        assert np.array_equal(output.images, expected.images)


def test_the_schedule_may_change_between_generations():
    pipe = build()
    before = pipe("a red circle").images
    pipe.schedule = TALL
    assert pipe("a red circle").images.shape == (1, 12, 6, 3)
    pipe.schedule = SQUARE
    assert np.array_equal(pipe("a red circle").images, before)


def test_a_stopped_loop_decodes_what_it_has():
    pipe = build()
    text = pipe.encode_prompts("a red circle")
    with torch.no_grad():
        loop = pipe.begin(text, torch.tensor([0]), 3.0, 1.0, 0.97)
        for scale in range(3):
            loop.run_scale(scale)
        images = pipe.decode(loop.summed)
    assert len(loop.bits) == 3
    assert images.shape == (1, 8, 8, 3)


def test_a_compiled_transformer_takes_the_place_of_the_model(fresh_dynamo):
    pipe = build()
    expected = pipe(PROMPTS, seed=2)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
    assert np.array_equal(pipe(PROMPTS, seed=2).images, expected.images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": []}, PromptError, "at least one"),
        ({"prompts": ["a red circle", 3]}, PromptError, "expected a string"),
        ({"prompts": "a red zebra"}, PromptError, "zebra"),
        ({"prompts": " "}, PromptError, "prompt"),
        ({"prompts": "a red circle", "seed": -1}, SeedError, "seed -1"),
        ({"prompts": PROMPTS, "seed": [1, 2]}, SeedError, "2 seeds for 3 images"),
        ({"prompts": "a red circle", "cfg": -1}, OptionError, "cfg=-1"),
        ({"prompts": "a red circle", "cfg": "3"}, OptionError, "cfg='3'"),
        ({"prompts": "a red circle", "tau": math.nan}, OptionError, "tau=nan"),
        ({"prompts": "a red circle", "cfg": math.inf}, OptionError, "cfg=inf: expected a finite number"),
        (
            {"prompts": "a red circle", "top_p": 1.1},
            OptionError,
            r"top_p=1\.1: expected a number in 0 \.\. 1",
        ),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, error, message):
    pipe = build()
    pipe.transformer.forward = None
    with pytest.raises(error, match=message) as raised:
        pipe(**arguments)
    assert "\n" not in str(raised.value)


def test_a_schedule_that_is_none_is_refused():
    pipe = build()
    pipe.schedule = "scenes"
    with pytest.raises(ScheduleError, match="schedule is a str: expected a Schedule"):
        pipe("a red circle")


def test_features_that_do_not_fit_are_refused():
    pipe = build()
    for shape in ((1, 25, 16), (1, 4, 15), (1, 0, 16)):
        with pytest.raises(PromptError, match="text features of"):
            pipe(TextFeatures(torch.zeros(shape), torch.ones(1, dtype=torch.int64)))
    with pytest.raises(PromptError, match="2 dimensions"):
        pipe(TextFeatures(torch.zeros(4, 16), torch.ones(1, dtype=torch.int64)))
    with pytest.raises(PromptError, match="lengths"):
        pipe(TextFeatures(torch.zeros(1, 4, 16), torch.ones(2, dtype=torch.int64)))
    with pytest.raises(PromptError, match=r"lengths of \[5\]"):
        pipe(TextFeatures(torch.zeros(1, 4, 16), torch.tensor([5])))
    for features, lengths, message in (
        (torch.zeros(0, 4, 16), torch.ones(0, dtype=torch.int64), "B at least 1"),
        (torch.zeros(1, 4, 16, dtype=torch.int64), torch.tensor([4]), "features of torch.int64"),
        ([[[0.0] * 16] * 4], torch.tensor([4]), "features of type list"),
        (torch.zeros(1, 4, 16), [4], "lengths of type list"),
        (torch.zeros(1, 4, 16), torch.tensor(4), r"lengths of torch.int64 \[\]: expected whole numbers"),
        (torch.zeros(1, 4, 16), torch.tensor([3.5]), r"lengths of torch.float32 \[1\]: expected whole"),
    ):
        with pytest.raises(PromptError, match=message):
            pipe(TextFeatures(features, lengths))
    pipe.text_encoder = None
    with pytest.raises(OptionError, match="no text encoder"):
        pipe("a red circle")


def test_parts_that_do_not_fit_are_refused():
    pipe = build()
    with pytest.raises(OptionError, match="latent channels"):
        InfinityPipeline(pipe.transformer, ImageVAE(VAEConfig(4, ch=8)), None, SQUARE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": torch.int8}, "dtype=torch.int8: expected one of floating point"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16': expected one of floating point"),
        ({"shard_bytes": 0}, "shard_bytes=0: expected at least 1"),
    ],
)
def test_what_no_file_may_hold_is_refused(tmp_path, settings, message):
    with pytest.raises(CheckpointError, match=message):
        build().save_pretrained(tmp_path / "small.safetensors", **settings)
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_gives_the_same_images(tmp_path):
    pipe = build(Schedule(TALL.sides, grid=(8, 4)), patchify=True)
    path = tmp_path / "small.safetensors"
    expected = pipe(PROMPTS, seed=1)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend="eager")
    pipe.save_pretrained(path)
    loaded = InfinityPipeline.from_pretrained(path, device="cpu")
    assert loaded.config == pipe.config
    assert loaded.vae.config == pipe.vae.config
    assert loaded.schedule == pipe.schedule
    assert np.array_equal(loaded(PROMPTS, seed=1).images, expected.images)
    pipe.save_pretrained(path, dtype=torch.bfloat16)
    half = InfinityPipeline.from_pretrained(path, device="cpu", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert half(PROMPTS, seed=1).images.shape == expected.images.shape


def test_shards_are_joined_and_missing_ones_noticed(tmp_path):
    pipe = build()
    files = pipe.save_pretrained(tmp_path / "small.safetensors", shard_bytes=40_000)
    assert len(files) > 2
    assert all(file.stat().st_size < 60_000 for file in files)
    loaded = InfinityPipeline.from_pretrained(tmp_path / "small.safetensors", device="cpu")
    assert np.array_equal(loaded(PROMPTS).images, pipe(PROMPTS).images)
    files[1].unlink()
    with pytest.raises(CheckpointError, match="shards are there"):
        InfinityPipeline.from_pretrained(tmp_path / "small.safetensors")


def test_pipeline_files_that_are_none(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no pipeline"):
        InfinityPipeline.from_pretrained(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        InfinityPipeline.from_pretrained(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="expected 'scenes' or the path"):
        InfinityPipeline.from_pretrained("scene")
    with pytest.raises(CheckpointError, match="from_official"):
        InfinityPipeline.from_pretrained("infinity-2b")
    with pytest.raises(CheckpointError, match="suffix"):
        build().save_pretrained(tmp_path / "model.pth")


def test_tensors_of_no_part_of_a_pipeline_are_named(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "small.safetensors"
    build().save_pretrained(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "vea.encoder": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match=r"1 tensors of no part \(vea.encoder\): expected .*vae"):
        InfinityPipeline.from_pretrained(path)


def test_official_checkpoints_load_by_their_own_keys(tmp_path, monkeypatch):
    from toprovar_fx import pipeline_files

    source = build()
    config = dataclasses.replace(SMALL, text_channels=16)
    monkeypatch.setitem(CONFIGS, "infinity-2b", config)
    monkeypatch.setitem(pipeline_files.VAE_CONFIGS, "infinity-2b", source.vae.config)
    state = {k: v for k, v in source.transformer.state_dict().items() if "zero_k_bias" not in k}
    torch.save({"trainer": {"gpt_fsdp": state}}, tmp_path / "infinity.pth")
    names = {
        k: k.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")
        for k in source.vae.state_dict()
    }
    vae_state = {names[k]: v for k, v in source.vae.state_dict().items()}
    torch.save({"vae": {**vae_state, "discriminator.weight": torch.zeros(1)}}, tmp_path / "vae.pth")
    pipe = InfinityPipeline.from_official(
        "infinity-2b",
        transformer=tmp_path / "infinity.pth",
        vae=tmp_path / "vae.pth",
        schedule=SQUARE,
        device="cpu",
    )
    text = source.encode_prompts(PROMPTS)
    assert np.array_equal(pipe(text, seed=1).images, source(PROMPTS, seed=1).images)


def test_t5_encoder_pads_and_checks_prompts():
    class Tokens:
        def __init__(self, prompts):
            lengths = [len(prompt.split()) + 1 for prompt in prompts]
            self.attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
            self.input_ids = self.attention_mask * 7

    class Encoder:
        device = torch.device("cpu")

        def __call__(self, input_ids, attention_mask):
            output = type("Output", (), {})()
            output.last_hidden_state = input_ids[..., None].expand(-1, -1, 16).float()
            return output

    encoder = T5TextEncoder(lambda prompts, **_: Tokens(prompts), Encoder(), max_tokens=6)
    text = encoder.encode_prompts(["one two", "one two three four"])
    assert text.features.shape == (2, 5, 16)
    assert text.lengths.tolist() == [3, 5]
    with pytest.raises(PromptError, match="7 tokens: expected at most 6"):
        encoder.encode_prompts(["1 2 3 4 5 6"])
    with pytest.raises(PromptError, match="empty"):
        encoder.encode_prompts(["ok", "  "])


def test_untrained_pipelines_have_the_named_sizes():
    pipe = InfinityPipeline.untrained("scenes", device="cpu", schedule=Schedule.named("scenes").first(2))
    assert pipe.config == CONFIGS["scenes"]
    assert pipe("a red circle").images.shape == (1, 16, 16, 3)
    with pytest.raises(OptionError, match="did you mean 'scenes'"):
        InfinityPipeline.untrained("scene")


def test_progress_bar_changes_nothing(capsys):
    pipe = build()
    assert np.array_equal(pipe("a red circle", progress=True).images, pipe("a red circle").images)
    assert "scales" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"device": "gpu"}, "device='gpu': expected a torch.device"),
        ({"device": 1.5}, "device=1.5: expected a torch.device"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "CUDA devices; expected one of them or 'cpu'"),
        ({"dtype": "float16"}, "dtype='float16': expected a floating-point torch.dtype"),
        ({"dtype": torch.int8}, "dtype=torch.int8: expected a floating-point torch.dtype"),
    ],
)
def test_devices_and_dtypes_that_are_none(given, expected):
    for make in (InfinityPipeline.from_pretrained, InfinityPipeline.untrained):
        with pytest.raises(OptionError, match=re.escape(expected)):
            make("scenes", **given)


@pytest.mark.parametrize("name", [None, 3, b"scenes", ["scenes"], ""])
def test_what_is_no_name_or_path(name):
    with pytest.raises(CheckpointError, match="expected 'scenes' or a path"):
        InfinityPipeline.from_pretrained(name, device="cpu")


@pytest.mark.parametrize("prompts", [None, 3, b"a red circle", iter(["a red circle"])])
def test_what_is_no_sequence_of_prompts(prompts):
    with pytest.raises(PromptError, match="expected a string, a sequence of strings or TextFeatures"):
        build()(prompts)


def test_numbers_of_numpy_are_numbers():
    kept = {"seed": 1, "tau": 0.0}
    images = [build()("a red circle", cfg=cfg, **kept).images for cfg in (3.0, np.float32(3), np.int64(3))]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_a_transformer_that_is_compiled_twice_is_named():
    pipe = build()
    pipe.transformer = torch.compile(torch.compile(pipe.transformer, backend="eager"), backend="eager")
    if not isinstance(pipe.transformer, torch.nn.Module):  # as torch 2.13 makes it
        with pytest.raises(OptionError, match="expected a module that is compiled once"):
            pipe("a red circle")
