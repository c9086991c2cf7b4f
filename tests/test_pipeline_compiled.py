"""The pipeline with a compiled transformer: both ways of compiling, early exit, loud warnings."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from toprovar_fx import InfinityPipeline, Schedule
from toprovar_fx.backend import toprovar
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity

PROMPT = "a red circle"
# The second of the two layers may be pruned.
SECOND = {"protected_layers_first": 1, "protected_layers_last": 0}
SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)))


@pytest.fixture(scope="module")
def pipe() -> InfinityPipeline:
    torch.manual_seed(0)
    whole = InfinityPipeline.untrained("scenes", device="cpu")
    config = replace(CONFIGS["scenes"], depth=2, width=64, heads=2)
    return InfinityPipeline(Infinity(config).eval(), whole.vae, whole.text_encoder, SCHEDULE)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def compiled(pipe: InfinityPipeline, way: str, **options: object) -> InfinityPipeline:
    copy = InfinityPipeline(pipe.transformer, pipe.vae, pipe.text_encoder, pipe.schedule)
    settings = {"lowering": "eager", **options}
    if way == "function":
        copy.transformer = torch.compile(pipe.transformer, backend=toprovar, options=settings)
    else:
        model = Infinity(pipe.transformer.config).eval()
        model.load_state_dict(pipe.transformer.state_dict())
        model.compile(backend=toprovar, options=settings)
        copy.transformer = model
    return copy


@pytest.mark.parametrize("way", ["function", "method"])
def test_both_ways_of_compiling_take_effect(pipe: InfinityPipeline, way: str) -> None:
    plain = pipe(PROMPT, seed=3)
    assert plain.report is None
    dense = compiled(pipe, way, preset="lossless")(PROMPT, seed=3)
    assert np.array_equal(dense.images, plain.images)
    assert dense.report.flops == dense.report.flops_dense > 0
    torch.compiler.reset()
    pruned = compiled(pipe, way, keep={-1: 0.25}, **SECOND)(PROMPT, seed=3)
    assert pruned.report.flops < pruned.report.flops_dense == dense.report.flops
    assert {row[2] for row in pruned.report.kept if row[0] == 9} == {256, 1024}
    assert not torch.equal(pruned.summed_codes, plain.summed_codes)


def test_an_early_exit_hands_the_code_sum_to_the_decoder(pipe: InfinityPipeline) -> None:
    full, short = (
        pipe(PROMPT, seed=1),
        compiled(pipe, "function", preset="lossless", scale_exit=-1)(PROMPT, seed=1),
    )
    assert len(short.bits) == len(full.bits) - 1
    for ours, theirs in zip(short.bits, full.bits, strict=False):
        assert torch.equal(ours, theirs)
    assert short.report.exited_at == 9
    assert 0.2 < short.report.flops / short.report.flops_dense < 0.6


def test_a_generation_without_a_prunable_graph_warns(pipe: InfinityPipeline) -> None:
    one_scale = InfinityPipeline(pipe.transformer, pipe.vae, pipe.text_encoder, SCHEDULE.first(1))
    with pytest.warns(RuntimeWarning, match="nothing was pruned"):
        compiled(one_scale, "function", preset="fast")(PROMPT, seed=1)


def test_a_recompile_limit_that_is_hit_is_not_silent(pipe: InfinityPipeline) -> None:
    with torch._dynamo.config.patch(recompile_limit=1), pytest.warns(RuntimeWarning, match="recompile limit"):
        compiled(pipe, "function", preset="lossless")(PROMPT, seed=1)


def test_no_warning_when_all_is_well(pipe: InfinityPipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compiled(pipe, "function", keep={-1: 0.5}, **SECOND)([PROMPT, "a blue square"], seed=1)
