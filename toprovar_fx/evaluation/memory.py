"""Peak memory of a call: allocated on a CUDA device, resident of the process on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..models.shared_tail import mapped_bytes

# Linux: writing 5 resets the peak that `status` reports as VmHWM.
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_bytes(call: Callable[[], object], device: torch.device | str) -> int | None:
    """Run ``call`` and return the most memory in use while it ran, in bytes; None where that cannot be read.

    On a CUDA device this is what torch's allocator handed out, weights included, and the caches that were
    mapped beside it, before the call or after it, whichever is more. On a CPU it is the resident memory of
    the whole process, code and libraries included, so that only differences of calls say something.
    """
    placed = torch.device(device)
    if placed.type == "cuda":
        torch.cuda.synchronize(placed)
        torch.cuda.reset_peak_memory_stats(placed)
        before = mapped_bytes(placed)
        call()
        torch.cuda.synchronize(placed)
        return int(torch.cuda.max_memory_allocated(placed)) + max(before, mapped_bytes(placed))
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    call()
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
