"""Whether Triton is there: it comes with torch's CUDA builds for Linux, not with others."""

from __future__ import annotations

import importlib.util


def has_triton() -> bool:
    """Whether the modules with kernels can be imported."""
    return importlib.util.find_spec("triton") is not None
