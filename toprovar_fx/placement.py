"""Where the components of a pipeline live, and how their memory is laid out there."""

from __future__ import annotations

import torch
from torch import nn


def placement(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Fill what was not given: CUDA if there is one, else the CPU; bfloat16 on CUDA, else float32."""
    placed = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return placed, dtype or (torch.bfloat16 if placed.type == "cuda" else torch.float32)


def lay_out(decoder: nn.Module) -> None:
    """Give a convolutional decoder the layout that suits its device.

    Channels last makes it a third faster on a CPU; on CUDA group normalisation would copy.
    """
    on_cpu = next(decoder.parameters()).is_cpu
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    decoder.to(memory_format=layout)  # type: ignore[call-overload]
