"""Kernels that the blocks of an Infinity model would launch on Hopper, counted without a device.

    python -m benchmarks.block_kernels --model 2b                      # dense, tapped and pruned blocks
    python -m benchmarks.block_kernels --model 2b --code 'block: all tokens'    # Inductor's code of one

Times need a device: `benchmarks.infinity_kernels`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from benchmarks import infinity_variants as variants
from benchmarks.hopper_stand_in import generated_code, launches
from benchmarks.infinity_kernels import generate
from toprovar_fx.live_programs import programs
from toprovar_fx.lowering.region import Region
from toprovar_fx.models.cache import DEFAULT_LAYOUT
from toprovar_fx.models.cache_layout import CacheLayout
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram
from toprovar_fx.schedules import Schedule

# Layers are alike; the one in the middle ranks the tokens of all.
DEPTH = 3
SCALES = 3  # the last of them pruned


def block_regions(
    config: InfinityConfig, schedule: Schedule, layout: CacheLayout = DEFAULT_LAYOUT
) -> dict[str, Region]:
    """The block graphs of a model by name: dense, with entropies, and pruned, traced on a CPU.

    Args:
        config: sizes; of the depth only three layers are built.
        schedule: of more than three scales.
        layout: of keys and values in memory.
    """
    small = replace(config, depth=DEPTH, block_chunks=1, text_channels=64, text_pool_heads=2)
    problem = variants.Problem("three layers", "cpu", torch.bfloat16, (small, schedule), layout)
    found: dict[str, Region] = {}
    keep = {scale: {0: 0.25, 1: 0.05, 2: 0.05} for scale in range(SCALES - 1, len(schedule))}
    pruned = {**variants.budget("2b", DEPTH, schedule, 0.25, 0.05), "keep": keep}
    for settings in ({"preset": "lossless", "unit": "step"}, pruned):
        options: dict[str, Any] = {**settings, "lowering": "eager"}
        generate(problem, torch.compile(problem.model, backend="toprovar", options=options), SCALES)
        for program in programs(Options.parse(options)):
            if isinstance(program, StepProgram):
                found.update((each.name, each) for each in program.regions if each.name.startswith("block"))
    return found


def size_hints(schedule: Schedule) -> dict[str, int]:
    """Sizes at the last scale, for which code is tuned."""
    tokens = schedule.tokens[-1]
    return {"offset": schedule.ends[-1] - tokens, "K": tokens // 20}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["2b", "8b"], default="2b")
    parser.add_argument("--code", metavar="BLOCK", help="print the code of this block instead")
    parser.add_argument(
        "--cache", choices=get_args(CacheLayout), default=DEFAULT_LAYOUT, help="layout of keys and values"
    )
    arguments = parser.parse_args(argv)
    config, schedule = variants.MODELS[arguments.model]
    regions = block_regions(config, schedule, arguments.cache)
    if arguments.code is not None:
        if arguments.code not in regions:
            raise SystemExit(f"--code {arguments.code!r}: expected one of {', '.join(map(repr, regions))}")
        print(generated_code(regions[arguments.code], size_hints(schedule)))
        return
    for name, region in regions.items():
        found = launches(region, size_hints(schedule))
        ours = sum(launch.generated for launch in found)
        print(f"{name}: {len(found)} launches, {ours} of them kernels that Inductor wrote")
        for launch in found:
            print(f"  {launch.name[:60]:60}  {launch.nodes[:100]}")


if __name__ == "__main__":
    main()
