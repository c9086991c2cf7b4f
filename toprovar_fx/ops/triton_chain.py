"""Kernels that are launched before the one before has ended (programmatic dependent launch), on Hopper."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .cards import HOPPER, capability


@triton.jit
def begin(CHAINED: tl.constexpr):
    """Let the next kernel be launched, then wait for the one before: before a kernel reads or writes.

    The next one is launched when all programs of this one run, so that none waits for room that a later one
    holds. It waits for the end of this one, which waits for the end of the one before.
    """
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


def chained(device: torch.device) -> dict[str, bool]:
    """Options of a launch on a device, for a kernel that calls `begin`."""
    return {"CHAINED": True, "launch_pdl": True} if capability(device) == HOPPER else {"CHAINED": False}
