"""Triton in tests: where it is, and kernels run in its interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is for Linux only")


def interpreted(module: str) -> dict[str, Any]:
    """What a module of the tests prints as JSON when kernels are interpreted.

    In a process of its own, because the interpreter is chosen when a kernel is defined.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{module}"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if "0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 does not run with NumPy 2.4")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
