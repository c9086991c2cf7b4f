"""Sizes that no model can have are refused before anything is built of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from toprovar_fx.errors import CheckpointError, OptionError
from toprovar_fx.loading.config_json import config_as_json, parse_config
from toprovar_fx.models.configs import CONFIGS, InfinityConfig
from toprovar_fx.models.text_encoder import SceneTextEncoder
from toprovar_fx.models.vae import VAE_CONFIGS, VAEConfig
from toprovar_fx.schedules import Schedule

WHOLE = ("depth", "width", "heads", "bits", "text_channels", "text_maxlen", "block_chunks", "text_pool_heads")
SCENES = CONFIGS["scenes"]


@pytest.mark.parametrize("name", [*WHOLE, "rope_grid", "text_multiple", "levels"])
@pytest.mark.parametrize("value", [0, -1, 10**12, 2.5, True, None, "4"])
def test_whole_numbers_of_a_transformer(name, value):
    with pytest.raises(OptionError, match=f"^{name} .*expected a whole number in 1 .. "):
        replace(SCENES, **{name: value})


@pytest.mark.parametrize("name", ["mlp_ratio", "cfg", "tau", "top_p"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, None, "4", True])
def test_other_numbers_of_a_transformer(name, value):
    with pytest.raises(OptionError, match=f"^{name} .*expected a"):
        replace(SCENES, **{name: value})


def test_patchify_is_a_flag():
    with pytest.raises(OptionError, match="patchify 1: expected True or False"):
        replace(SCENES, patchify=1)


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("z_channels", "ch", "num_res_blocks") for value in (0, 10**9, None)),
        *({"encoder_mult": value} for value in ((), (1, 0), (1, "2"), (1, True), (1,) * 99, 3)),
        {"decoder_mult": (1, -2)},
    ],
    ids=str,
)
def test_numbers_of_an_autoencoder(change):
    (name,) = change
    with pytest.raises(OptionError, match=f"^{name} .*expected"):
        VAEConfig(**{"z_channels": 16, **change})


@pytest.mark.parametrize("name", ["vocab_size", "width", "layers", "heads", "max_words"])
@pytest.mark.parametrize("value", [0, 10**12, None])
def test_numbers_of_a_text_encoder(name, value):
    with pytest.raises(OptionError, match=f"^{name} .*expected a whole number"):
        SceneTextEncoder(**{"vocab_size": 10, **{name: value}})


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(OptionError, match="heads 3: expected a divisor of width 256"):
        SceneTextEncoder(10, heads=3)


def as_json() -> dict[str, dict[str, object]]:
    written = config_as_json(SCENES, VAE_CONFIGS["infinity-2b"], Schedule.named("scenes"))
    return json.loads(json.dumps(written))


def test_what_a_file_says_is_named():
    assert asdict(parse_config(as_json(), "a.safetensors")[0]) == asdict(SCENES)
    content = as_json()
    content["transformer"]["depth"] = 10**6
    with pytest.raises(
        CheckpointError, match=r"in a\.safetensors is not valid: depth 1000000: expected a whole"
    ):
        parse_config(content, "a.safetensors")
    del content["schedule"]
    with pytest.raises(CheckpointError, match=r"in a\.safetensors: expected an entry 'schedule'"):
        parse_config(content, "a.safetensors")


def test_all_known_models_are_valid():
    for config in CONFIGS.values():
        assert InfinityConfig(**asdict(config)) == config
