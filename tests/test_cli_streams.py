"""Standard output and error that are full, closed or no longer read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPROVAR = f"{sys.executable} -m toprovar_fx"
full_device = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)


@full_device
def test_a_full_standard_output_is_one_line() -> None:
    done = shell(f"{TOPROVAR} policies > /dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "toprovar: error: cannot write: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = shell(f"{TOPROVAR} --version | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (1, "")


def test_closed_streams() -> None:
    assert shell(f"{TOPROVAR} --version >&-").returncode == 0
    done = shell(f"{TOPROVAR} generat 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
