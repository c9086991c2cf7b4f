"""What the backend says where it was asked for and could do nothing."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from toprovar_fx.backend import toprovar

from .models.prenorm import PreNorm

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import torch
from tests.models.like_var import LikeVAR
model = {model}
torch.manual_seed(0)
print(model.autoregressive_infer_cfg(1, torch.tensor([3]), g_seed=0).shape)
"""


def run(model: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(model=model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stderr


def test_compiling_a_module_whose_forward_never_runs_is_said_at_the_end():
    said = run('torch.compile(LikeVAR().eval(), backend="toprovar")')
    assert "toprovar: the backend was named to torch.compile and never received a graph" in said
    assert "use toprovar_fx.accelerate(model)" in said


def test_a_model_that_nobody_compiled_is_not_talked_about():
    assert "toprovar" not in run("LikeVAR().eval()")


@pytest.mark.parametrize(("preset", "warned"), [("criterion", 1), ("lossless", 0)])
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_prunable_graph_outside_a_generation_is_said_once(preset, warned):
    model = PreNorm().eval()
    options = {"preset": preset, "lowering": "eager", "beta": 0.0123}
    compiled = torch.compile(model, backend=toprovar, options=options)
    cache = model.new_cache(2)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for length, end in ((1, 1), (4, 5), (9, 14), (16, 30)):
            compiled(torch.randn(2, length, 32), cache, end)
    said = [str(entry.message) for entry in caught if "outside a generation" in str(entry.message)]
    assert len(said) == warned
