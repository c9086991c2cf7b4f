"""What the backend says where it was asked for and could do nothing."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from toprovar_fx.backend import toprovar
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.runtime.generation import Generation, generation

from .models.prenorm import PreNorm
from .models.subjects import OPEN, SQUARE, TinyPreNorm, generate, identical

EAGER = {"lowering": "eager"}
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


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_generation_whose_scales_never_begin_prunes_nothing_and_says_so():
    subject = TinyPreNorm(True, False)
    compiled = torch.compile(subject.model, backend="toprovar", options={**OPEN, **EAGER, "keep": {3: 0.5}})
    expected = generate(subject, subject.model).logits

    def drawn(inner: bool) -> tuple[list[torch.Tensor], list[str]]:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.inference_mode(),
            generation(SQUARE) as run,
        ):
            warnings.simplefilter("always")
            state = subject.state(1, SQUARE)
            with generation(SQUARE) if inner else nullcontext():
                logits = []
                for scale, end in enumerate(SQUARE.ends):
                    if inner:
                        run.begin_scale(scale)
                    hidden = subject.hidden(1, scale, SQUARE)
                    logits.append(compiled(*subject.arguments(hidden, state, end)))
        return logits, [str(entry.message) for entry in caught]

    logits, said = drawn(inner=False)
    assert identical(logits, expected)
    assert sum("before its first scale began" in each for each in said) == 1
    torch.compiler.reset()
    logits, said = drawn(inner=True)
    assert identical(logits, expected)
    assert any("begin_scale(scale) of the innermost generation" in each for each in said)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_scale_that_is_left_out_did_not_run_eagerly():
    subject = TinyPreNorm(True, False)
    compiled = torch.compile(subject.model, backend="toprovar", options={"preset": "lossless", **EAGER})
    with warnings.catch_warnings(), torch.inference_mode(), generation(SQUARE) as run:
        warnings.simplefilter("error")
        state = subject.state(1, SQUARE)
        for scale in (0, 1, 3):
            run.begin_scale(scale)
            hidden = subject.hidden(1, scale, SQUARE)
            compiled(*subject.arguments(hidden, state, SQUARE.ends[scale]))
    assert run.eager_scales == []


def test_keep_for_a_scale_that_there_is_not_is_refused():
    run = Generation(SQUARE, 1)
    with pytest.raises(OptionError, match="keep=6: expected scales from -6 to 5"):
        run.controller(Options.parse({"keep": {6: 0.5}}), 4)
    assert run.controller(Options.parse({"keep": {5: 0.5, -9: 0.5}}), 4).ratio(2) is None


@pytest.mark.parametrize(("layer", "nearest"), [(4, 3), (-5, -4)])
def test_keep_for_a_layer_that_there_is_not_is_refused(layer: int, nearest: int) -> None:
    message = f"keep of scale 5, layer={layer}: expected an index from -4 to 3; nearest valid: {nearest}"
    with pytest.raises(OptionError, match=message):
        Generation(SQUARE, 1).controller(Options.parse({"keep": {5: {layer: 0.5}}}), 4)


def test_keep_for_the_layers_at_both_ends() -> None:
    controller = Generation(SQUARE, 1).controller(Options.parse({"keep": {5: {3: 0.5, -4: 0.2}}}), 4)
    assert controller.layers == 4
