"""Numeric settings of training, in force only inside the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def mixed(device: torch.device) -> AbstractContextManager[object]:
    """Bfloat16 autocast on an accelerator; plain float32 on a processor, where bfloat16 is slower."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Allow TF32 products and cuDNN's algorithm search, and restore the caller's settings afterwards."""
    precision, search = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = search
