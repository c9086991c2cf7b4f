"""Inductor's code of a whole step: caches are written in place, and read before the next layer writes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from toprovar_fx.live_programs import programs
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram
from toprovar_fx.schedules import Schedule

from .models.subjects import OPEN

stand_in = pytest.importorskip("benchmarks.hopper_stand_in", reason="needs Triton, which is for Linux only")
from benchmarks.infinity_kernels import generate  # noqa: E402 - needs Triton too
from benchmarks.infinity_variants import Problem  # noqa: E402

SCHEDULE = Schedule(((1, 1), (2, 2), (4, 4), (6, 6)))
DEPTH = 3
OPTIONS = {
    "dense": {"preset": "lossless"},
    "pruned": {**OPEN, "keep": {2: 0.5, 3: {1: 0.25, 2: 0.5}}, "entropy_source": "previous_scale"},
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_each_cache_is_written_in_place_and_read_before_the_next_layer_writes(name):
    small = replace(
        CONFIGS["infinity-2b"],
        **{
            "width": 256,
            "heads": 2,
            "depth": DEPTH,
            "block_chunks": 1,
            "text_channels": 64,
            "text_pool_heads": 2,
        },
    )
    problem = Problem("a few layers", "cpu", torch.bfloat16, (small, SCHEDULE), "token_major")
    settings = {**OPTIONS[name], "unit": "step", "step_code": "fused", "lowering": "eager"}
    torch.compiler.reset()
    generate(problem, torch.compile(problem.model, backend="toprovar", options=settings), len(SCHEDULE))
    known = [each for each in programs(Options.parse(settings)) if isinstance(each, StepProgram)]
    steps = [region for each in known for region in each.regions if region.name.startswith("whole step")]
    assert steps
    for region in steps:
        names = {str(symbol) for spec in region.specs for symbol in spec.symbols}
        hints = {name: 21 if name.startswith("offset") else 9 for name in names}
        hints |= {str(spec.value): 37 for spec in region.specs if str(spec.value).startswith("s")}
        hints |= {str(spec.shape[1]): 16 for spec in region.specs if spec.shape and len(spec.shape) == 3}
        code = stand_in.generated_code(region, hints)
        code = code[code.rindex("def call(") :]
        slots = SCHEDULE.ends[-1] + 1
        caches = re.findall(rf"assert_size_stride\((arg\d+_1), \(2, 2, {slots}, 128\)", code)
        assert len(caches) == 2 * DEPTH
        # Whoever else names a cache than these checks: what writes it, then the one attention that reads it.
        uses = [
            (at, line.strip(), name)
            for at, line in enumerate(code.splitlines())
            for name in caches
            if re.search(rf"\b{name}\b", line) and re.search(r"\.run\(|torch\.ops|extern_kernels", line)
        ]
        kinds = [
            "reads" if "attention" in line.split("(")[0] and "torch.ops" in line else "writes"
            for _, line, _ in uses
        ]
        assert kinds == ["writes", "writes", "reads", "reads"] * DEPTH, [line[:160] for _, line, _ in uses]
        for layer in range(DEPTH):
            own = uses[4 * layer : 4 * layer + 4]
            assert {name for _, _, name in own[:2]} == {name for _, _, name in own[2:]}
            assert own[2][0] == own[3][0]
        # No buffer is as large as a cache.
        assert f"empty_strided_cuda((2, 2, {slots}, 128)" not in code
