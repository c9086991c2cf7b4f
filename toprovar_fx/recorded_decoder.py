"""From a code sum to pixels: the image decoder, on CUDA recorded as one graph where its kernels are short."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from ._torch_private import has_hooks, hooks_of_all_modules, parts_of, settings_of, state_of
from .models import vae as vae_module
from .models import vae_blocks
from .models.vae import ImageVAE
from .runtime.recorded_function import RecordedFunction, memory_of

# Larger images keep a device busy for longer than their launches take, and a recording keeps its memory.
_MOST_PIXELS = 512 * 512
# Whose modules compute what their parameters and inputs say, and nothing else.
_KNOWN = (vae_module.__name__, vae_blocks.__name__)


class RecordedDecoder:
    """Decodes the code sums of one autoencoder.

    Args:
        vae: its weights may change, their places, and what its modules were told in numbers and words; with
            modules that are replaced, compiled, hooked or subclassed it is called as it is.
        device: where it is.
    """

    def __init__(self, vae: ImageVAE, device: torch.device | str) -> None:
        self.vae, self.device = vae, torch.device(device)
        self._recorded = RecordedFunction(self._compute, memory_of(self.device))

    def __call__(self, summed: Tensor) -> Tensor:
        """Images ``[B, H, W, 3]`` uint8 RGB of a sum of codes ``[B, d, h, w]``, complete or not."""
        parts = parts_of(self.vae.decoder) if self._is_worth_it(summed) else []
        if not parts or not all(map(_is_plain, [self.vae, *parts])):
            return self._compute(summed)[0]
        kinds, settings = tuple(map(type, parts)), tuple(settings_of(parts))
        return self._recorded({"summed": summed}, state_of(parts), kinds=kinds, settings=settings)[0]

    def preview(self, summed: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] of a sum of codes of any size, never recorded."""
        return self.vae.decode(summed.to(next(self.vae.parameters()).dtype))

    def _compute(self, summed: Tensor, **told: Hashable) -> tuple[Tensor]:
        """The images; `told` is what tells recordings apart besides the weights."""
        images = self.preview(summed).float()
        pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return (pixels.permute(0, 2, 3, 1).contiguous(),)

    def _is_worth_it(self, summed: Tensor) -> bool:
        """Whether a recording saves time, and nothing around the call wants to see its operators."""
        if type(self.vae) is not ImageVAE or hooks_of_all_modules():
            return False
        if torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            return False
        return len(summed) * summed.shape[-2:].numel() * self.vae.config.factor**2 <= _MOST_PIXELS


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module does what its class, its weights and its inputs say, and nothing else."""
    made_by, own = type(module).__module__, vars(module)
    known = made_by in _KNOWN or made_by.startswith("torch.nn.modules.")
    return known and "forward" not in own and "decode" not in own and not has_hooks(module)
