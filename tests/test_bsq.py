"""Multi-scale BSQ: its definition, its residual structure and the self-correction."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from toprovar_fx.errors import ScheduleError
from toprovar_fx.models.bsq import BSQConfig, MultiScaleBSQ

SIDES = ((1, 1), (2, 2), (3, 3), (5, 5), (8, 8))


def latent(images: int = 3, bits: int = 6, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, bits, side, side, generator=torch.Generator().manual_seed(seed))


def test_codes_are_signs_over_the_root_of_the_width() -> None:
    quantizer = MultiScaleBSQ(BSQConfig(6, SIDES))
    bits = torch.rand(2, 4, 6) > 0.5
    codes = quantizer.codes(bits, 1)
    assert codes.shape == (2, 6, 2, 2)
    expected = torch.where(bits, 1.0, -1.0) / math.sqrt(6)
    torch.testing.assert_close(codes, expected.transpose(1, 2).reshape(2, 6, 2, 2))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2, 2, 2))


def test_encode_equals_a_plain_residual_loop_with_trilinear_frames() -> None:
    z = latent()
    encoding = MultiScaleBSQ(BSQConfig(6, SIDES)).encode(z)
    residual, total = z[:, :, None], torch.zeros_like(z)[:, :, None]
    for scale, (height, width) in enumerate(SIDES):
        small = F.interpolate(residual, size=(1, height, width), mode="area")
        target = small > 0
        assert torch.equal(encoding.bits[scale], target.flatten(2).transpose(1, 2))
        code = F.interpolate(target.float() * 2 - 1, size=(1, 8, 8), mode="trilinear") / math.sqrt(6)
        total, residual = total + code, residual - code
        if scale + 1 < len(SIDES):
            after = F.interpolate(total, size=(1, *SIDES[scale + 1]), mode="trilinear")
            torch.testing.assert_close(encoding.inputs[scale], after.flatten(2).transpose(1, 2))
    torch.testing.assert_close(encoding.summed, total[:, :, 0])


def test_generation_steps_rebuild_what_encode_summed() -> None:
    quantizer = MultiScaleBSQ(BSQConfig(6, SIDES))
    encoding = quantizer.encode(latent())
    summed = torch.zeros(3, 6, 8, 8)
    for scale, bits in enumerate(encoding.bits):
        summed = quantizer.accumulate(summed, bits, scale)
        if scale + 1 < len(SIDES):
            torch.testing.assert_close(quantizer.next_input(summed, scale), encoding.inputs[scale])
    torch.testing.assert_close(summed, encoding.summed)


def test_more_scales_reconstruct_better() -> None:
    z = 0.5 * latent()
    quantizer = MultiScaleBSQ(BSQConfig(6, SIDES))
    errors = [float((z - quantizer.encode(z, scales=count).summed).square().mean()) for count in (3, 4, 5)]
    assert errors[0] > errors[1] > errors[2]


def test_patchified_tokens_hold_two_by_two_positions() -> None:
    patched = MultiScaleBSQ(BSQConfig(3, ((1, 1), (2, 2), (4, 4)), patchify=2))
    plain = MultiScaleBSQ(BSQConfig(3, ((2, 2), (4, 4), (8, 8))))
    z = latent(bits=3)
    ours, theirs = patched.encode(z), plain.encode(z)
    assert [tuple(bits.shape) for bits in ours.bits] == [(3, 1, 12), (3, 4, 12), (3, 16, 12)]
    assert [inputs.shape[1:] for inputs in ours.inputs] == [(4, 12), (16, 12)]
    torch.testing.assert_close(ours.summed, theirs.summed)
    again = patched.accumulate(torch.zeros_like(z), ours.bits[2], 2)
    torch.testing.assert_close(again, plain.accumulate(torch.zeros_like(z), theirs.bits[2], 2))


def test_flips_change_inputs_and_later_targets_but_not_the_first_target() -> None:
    quantizer, z = MultiScaleBSQ(BSQConfig(6, SIDES)), latent(64)
    clean = quantizer.encode(z)
    flipped = quantizer.encode(z, flip_prob=0.2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clean.bits[0], flipped.bits[0])
    changed = (clean.inputs[0][:, 0] * flipped.inputs[0][:, 0] < 0).float().mean()
    assert 0.1 < float(changed) < 0.3
    assert not torch.equal(clean.bits[1], flipped.bits[1])


def test_later_scales_repair_flips() -> None:
    quantizer, z = MultiScaleBSQ(BSQConfig(6, SIDES)), 0.5 * latent(64)
    flipped = quantizer.encode(z, flip_prob=0.2, generator=torch.Generator().manual_seed(1))
    clean = quantizer.encode(z)
    # Without requantisation the same share of flips would leave every wrong bit in the sum.
    blind = torch.zeros_like(z)
    generator = torch.Generator().manual_seed(1)
    for scale, bits in enumerate(clean.bits):
        blind = quantizer.accumulate(blind, bits ^ (torch.rand(bits.shape, generator=generator) < 0.2), scale)

    def error(summed: torch.Tensor) -> float:
        return float((summed - z).square().mean())

    assert error(clean.summed) < error(flipped.summed) < error(blind)


def test_flip_probability_per_image() -> None:
    quantizer, z = MultiScaleBSQ(BSQConfig(6, SIDES)), latent(2)
    clean = quantizer.encode(z)
    mixed = quantizer.encode(z, flip_prob=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed.summed[0], clean.summed[0])
    torch.testing.assert_close(mixed.inputs[0][1], -clean.inputs[0][1])


def test_schedules_and_their_errors() -> None:
    quantizer = MultiScaleBSQ(BSQConfig(6))
    assert [height for height, _ in quantizer.schedule] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert quantizer.latent_side(-1) == (32, 32)
    with pytest.raises(ScheduleError, match="expected 0 to 9"):
        quantizer.latent_side(10)
    wide = quantizer.encode(torch.randn(1, 6, 4, 8), schedule=((1, 1), (2, 4), (4, 8)))
    assert [bits.shape[1] for bits in wide.bits] == [1, 8, 32]
    quantizer.set_schedule(((1, 1), (2, 4)))
    assert quantizer.latent_side(-1) == (2, 4)
