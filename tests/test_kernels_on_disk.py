"""Where Triton keeps its kernels: a second process must find those of the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import triton_cache_dir
from torch._subclasses.fake_tensor import FakeTensorMode

from toprovar_fx._torch_private.inductor import keep_kernels_together

SETTING = "TRITON_CACHE_DIR"
# Draws one image and tells of every kernel whether it was found on disk.
DRAW = """
import json, torch, triton
from tests.models.subjects import generate
from tests.replayed_steps import DECIDED, Kept, compiled

found = []
listener = lambda *, src, cache_hit, **_: found.append((src.name, cache_hit))
triton.knobs.compilation.listener = listener
subject = Kept(device="cuda", dtype=torch.bfloat16)
for _ in range(2):
    generate(subject, compiled(subject, DECIDED, lowering="inductor"))
print(json.dumps(found))
"""


@pytest.fixture
def unset(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(SETTING, "")
    monkeypatch.delenv(SETTING)


def on(device: str) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, device=device)


def test_triton_keeps_its_kernels_where_inductor_does(unset, tmp_path):
    keep_kernels_together([3, on("cpu"), on("cuda:1")])
    assert os.environ[SETTING] == triton_cache_dir(1) == str(tmp_path / "triton" / "1")


def test_a_folder_that_was_chosen_stays(unset, monkeypatch):
    monkeypatch.setenv(SETTING, "/chosen")
    keep_kernels_together([on("cuda:0")])
    assert os.environ[SETTING] == "/chosen"


def test_without_cuda_nothing_is_set(unset):
    keep_kernels_together([3, on("cpu")])
    assert SETTING not in os.environ


@pytest.mark.gpu
@pytest.mark.slow
def test_a_second_process_compiles_no_kernel(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != SETTING}
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TRITON_HOME": str(tmp_path)}

    def draw() -> list[tuple[str, bool]]:
        root = Path(__file__).parents[1]
        ran = subprocess.run(
            [sys.executable, "-c", DRAW], cwd=root, env={**clean, **folders}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    first, second = draw(), draw()
    assert {"rotation_kernel"} <= {name for name, hit in first if not hit}
    assert [name for name, hit in second if not hit] == []
    assert "rotation_kernel" in [name for name, _ in second]
