"""Image autoencoder: official parameter names, sizes and budgets."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from toprovar_fx.models.vae import VAE_CONFIGS, ImageVAE, VAEConfig

TINY = VAEConfig(z_channels=4, ch=8, encoder_mult=(1, 2), decoder_mult=(1, 2), num_res_blocks=1)


def on_meta(name: str) -> ImageVAE:
    with torch.device("meta"):
        return ImageVAE(VAE_CONFIGS[name])


def gigaflop(call: object, *arguments: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        call(*arguments)  # type: ignore[operator]
    return counter.get_total_flops() / 1e9


def test_scenes_budget() -> None:
    vae = on_meta("scenes")
    assert sum(parameter.numel() for parameter in vae.parameters()) <= 4_200_000
    images, latents = torch.empty(1, 3, 256, 256, device="meta"), torch.empty(1, 16, 32, 32, device="meta")
    assert vae.encode(images).shape == latents.shape
    assert vae.decode(latents).shape == images.shape
    assert gigaflop(vae.encode, images) <= 10
    assert gigaflop(vae.decode, latents) <= 16


@pytest.mark.parametrize(
    ("name", "latent", "teraflop"), [("infinity-2b", 64, 9.85), ("infinity-8b", 128, 9.89)]
)
def test_official_decoder_cost(name: str, latent: int, teraflop: float) -> None:
    vae = on_meta(name)
    z = torch.empty(1, vae.config.z_channels, latent, latent, device="meta")
    assert gigaflop(vae.decoder, z) / 1e3 == pytest.approx(teraflop, abs=0.01)
    assert vae.config.factor * latent == 1024


def test_official_names_and_shapes() -> None:
    state = on_meta("infinity-2b").state_dict()
    shapes = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.conv.weight": (256, 128, 1, 1),
        "encoder.down.3.downsample.conv.conv.bias": (512,),
        "encoder.mid.block_1.norm1.norm.weight": (512,),
        "encoder.conv_out.conv.weight": (32, 512, 3, 3),
        "decoder.conv_in.conv.weight": (512, 32, 3, 3),
        "decoder.up.4.block.2.conv2.conv.weight": (512, 512, 3, 3),
        "decoder.up.1.block.0.nin_shortcut.conv.weight": (256, 512, 1, 1),
        "decoder.up.1.upsample.conv.conv.weight": (256, 256, 3, 3),
        "decoder.up.0.block.0.conv1.conv.weight": (128, 256, 3, 3),
        "decoder.norm_out.norm.bias": (128,),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3),
        "quantizer.lfq.mask": (32,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert "encoder.down.4.downsample.conv.conv.weight" not in state
    assert "decoder.up.0.upsample.conv.conv.weight" not in state
    assert not any(".attn" in name for name in state)


def test_reconstruction_is_an_image_and_deterministic() -> None:
    torch.manual_seed(0)
    vae = ImageVAE(TINY).eval()
    vae.quantizer.set_schedule(((1, 1), (4, 4), (8, 8)))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first, second = vae(images), vae(images)
    assert first.shape == images.shape
    assert float(first.detach().abs().max()) <= 1
    assert torch.equal(first, second)


def test_batch_independence() -> None:
    torch.manual_seed(0)
    vae = ImageVAE(TINY).eval()
    z = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(vae.decode(z)[1:2], vae.decode(z[1:2]))
