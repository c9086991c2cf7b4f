"""What a card can do, as far as kernels are chosen by it."""

from __future__ import annotations

import torch

AMPERE, HOPPER = (8, 0), (9, 0)
# Programs along the second axis of a grid.
MOST_PROGRAMS = 65535


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of an NVIDIA card; (0, 0) for others.

    Cards of AMD are CUDA devices to torch too, and answer with numbers of their own: (9, 0) is an MI200.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(device)
