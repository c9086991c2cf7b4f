"""Kernels that are launched before the one before has ended (programmatic dependent launch), on Hopper."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .cards import HOPPER, capability


@triton.jit
def begin(CHAINED: tl.constexpr):
    """Wait for the kernel before, then let the next one be launched: the first thing that a kernel does.

    In this order no kernel starts before all but the last of those before it have ended.
    """
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()


def chained(device: torch.device) -> dict[str, bool]:
    """Options of a launch on a device, for a kernel that calls `begin`."""
    return {"CHAINED": True, "launch_pdl": True} if capability(device) == HOPPER else {"CHAINED": False}
