"""Images are those of the decoder's own call, recorded or not, whatever became of its modules and weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toprovar_fx import recorded_decoder
from toprovar_fx.models.bsq import BSQConfig
from toprovar_fx.models.vae import ImageVAE, VAEConfig
from toprovar_fx.recorded_decoder import RecordedDecoder
from toprovar_fx.runtime.cuda_graphs import GraphMemory

from .models.recorders import CpuRecorder

CONFIG = VAEConfig(
    z_channels=4, ch=8, encoder_mult=(1, 2), decoder_mult=(1, 2), num_res_blocks=1, quantizer=BSQConfig(4)
)


@pytest.fixture
def recorder(monkeypatch) -> CpuRecorder:
    made = CpuRecorder()
    monkeypatch.setattr(recorded_decoder, "memory_of", lambda device: GraphMemory(made, False))
    return made


@pytest.fixture
def vae() -> ImageVAE:
    torch.manual_seed(0)
    return ImageVAE(CONFIG).eval()


def sums(seed: int, images: int = 1) -> torch.Tensor:
    return torch.randn(images, 4, 6, 8, generator=torch.Generator().manual_seed(seed))


def plain(vae: ImageVAE, summed: torch.Tensor) -> torch.Tensor:
    images = vae.decode(summed).float()
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


@torch.no_grad()
def check(decoder: RecordedDecoder, seed: int, images: int = 1) -> torch.Tensor:
    summed = sums(seed, images)
    found = decoder(summed)
    assert torch.equal(found, plain(decoder.vae, summed)) and found.shape == (images, 12, 16, 3)
    return found


def test_replays_give_the_images_and_leave_earlier_ones_alone(recorder, vae):
    decoder = RecordedDecoder(vae, "cpu")
    first = check(decoder, 1)
    kept = first.clone()
    check(decoder, 2)
    check(decoder, 3, images=2)
    assert torch.equal(first, kept)
    assert (recorder.records, recorder.replays) == (2, 3)


def test_weights_that_change_are_read_and_those_that_move_recorded_anew(recorder, vae):
    decoder = RecordedDecoder(vae, "cpu")
    before = check(decoder, 1)
    with torch.no_grad():
        vae.decoder.conv_in.conv.weight.mul_(2)
    assert not torch.equal(check(decoder, 1), before) and recorder.records == 1
    with torch.no_grad():
        vae.decoder.conv_out.conv.weight.data = 3 * vae.decoder.conv_out.conv.weight.data
    check(decoder, 1)
    assert recorder.records == 2
    vae.decoder.mid.add_module("idle", nn.Identity())
    check(decoder, 1)
    assert recorder.records == 3, "modules without weights count too"
    vae.to(torch.bfloat16)
    with torch.no_grad():
        assert decoder(sums(1)).dtype == torch.uint8
    assert recorder.records == 4


def test_a_module_that_is_told_otherwise_is_recorded_anew(recorder, vae):
    decoder = RecordedDecoder(vae, "cpu")
    before = check(decoder, 1)
    norms = [module for module in vae.decoder.modules() if isinstance(module, nn.GroupNorm)]
    for module in norms:
        module.eps = 1.0
    assert not torch.equal(check(decoder, 1), before)
    for module in norms:
        module.eps = 1e-6
    assert torch.equal(check(decoder, 1), before)
    assert recorder.records == 2


class Louder(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def replaced(vae: ImageVAE) -> None:
    vae.decoder.conv_out.conv = Louder(8, 3, 3, padding=1)


def hooked(vae: ImageVAE) -> None:
    vae.decoder.mid.register_forward_hook(lambda module, given, result: 2 * result)


def hooked_before(vae: ImageVAE) -> None:
    vae.decoder.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def patched(vae: ImageVAE) -> None:
    forward = vae.decoder.conv_in.forward
    vae.decoder.conv_in.forward = lambda x: forward(2 * x)  # type: ignore[method-assign]


def decoding_otherwise(vae: ImageVAE) -> None:
    vae.decode = lambda summed: torch.tanh(vae.decoder(summed))  # type: ignore[method-assign]


def parametrised(vae: ImageVAE) -> None:
    nn.utils.parametrizations.weight_norm(vae.decoder.conv_in.conv)


def compiled(vae: ImageVAE) -> None:
    vae.decoder = torch.compile(vae.decoder, backend="eager")  # type: ignore[assignment]


@pytest.mark.parametrize(
    "change",
    [replaced, hooked, hooked_before, patched, decoding_otherwise, parametrised, compiled],
    ids=lambda change: change.__name__,
)
def test_what_does_more_than_its_weights_say_is_called(recorder, vae, change, fresh_dynamo):
    decoder = RecordedDecoder(vae, "cpu")
    before = check(decoder, 1)
    change(vae)
    found = check(decoder, 1)
    assert torch.equal(found, before) == (change in (parametrised, compiled))
    assert recorder.replays == 1


def test_hooks_of_all_modules_are_called(recorder, vae):
    decoder = RecordedDecoder(vae, "cpu")
    seen: list[nn.Module] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, result: seen.append(module))
    try:
        check(decoder, 1)
    finally:
        hook.remove()
    assert seen and not recorder.records


def test_large_images_gradients_and_autocast_are_not_recorded(recorder, vae, monkeypatch):
    decoder = RecordedDecoder(vae, "cpu")
    decoder(sums(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoder(sums(1))
    monkeypatch.setattr(recorded_decoder, "_MOST_PIXELS", 12 * 16)
    with torch.no_grad():
        decoder(sums(1, images=2))
        assert not recorder.records
        decoder(sums(1))
    assert recorder.records == 1


def test_an_autoencoder_of_another_class_is_called(recorder):
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def decode(self, summed: torch.Tensor) -> torch.Tensor:
            return (self.scale * summed[:, :3]).clamp(-1, 1)

    with torch.no_grad():
        assert RecordedDecoder(Other(), "cpu")(sums(1)).shape == (1, 6, 8, 3)  # type: ignore[arg-type]
    assert not recorder.records


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_on_a_device():
    torch.manual_seed(0)
    vae = ImageVAE(CONFIG).eval().cuda()
    decoder = RecordedDecoder(vae, "cuda")
    with torch.no_grad():
        for seed in (1, 2, 1):
            summed = sums(seed).cuda()
            found, expected = decoder(summed), plain(vae, summed)
            assert (found.int() - expected.int()).abs().max() <= 1
    assert len(decoder._recorded._recordings) == 1
