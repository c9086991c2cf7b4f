"""The image decoder alone: eagerly, and compiled, in both memory layouts.

    python -m benchmarks.image_decoder --device cuda --model infinity-2b --rounds 15
    python -m benchmarks.image_decoder --device cpu --model scenes

The decoder is no transformer, so stock Inductor compiles it, by
``pipe.vae.decoder = torch.compile(pipe.vae.decoder)``. Random weights; interleaved rounds, medians, ratios
paired by round. The last line is the record as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_fx.evaluation.timing import interleave
from toprovar_fx.models.vae import VAE_CONFIGS, ImageVAE
from toprovar_fx.placement import placement
from toprovar_fx.schedules import Schedule

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def variants(decoder: nn.Module, latent: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Calls of one decoder by name; on CUDA also as a CUDA graph of its compiled kernels.

    Args:
        decoder: with its weights on the device.
        latent: ``[B, d, h, w]``.
    """
    modes: dict[str, dict[str, Any] | None] = {"eager": None, "inductor": {}}
    if latent.is_cuda:
        modes["reduce-overhead"] = {"mode": "reduce-overhead"}
    found: dict[str, Callable[[], Tensor]] = {}
    for layout, memory_format in LAYOUTS.items():
        laid_out = copy.deepcopy(decoder)
        laid_out.to(memory_format=memory_format)  # type: ignore[call-overload]
        for mode, options in modes.items():
            call = laid_out if options is None else torch.compile(laid_out, dynamic=False, **options)
            found[f"{mode}, {layout}"] = partial(call, latent)
    return found


@torch.inference_mode()
def measure(model: str, device: torch.device, dtype: torch.dtype, batch: int, rounds: int) -> dict[str, Any]:
    """Time every variant, print the table, and return it with the largest difference to the first."""
    vae = ImageVAE(VAE_CONFIGS[model]).to(device, dtype).eval()
    schedule = Schedule.named(model) if model == "scenes" else Schedule.infinity()
    vae.quantizer.set_schedule(schedule.sides)
    generator = torch.Generator().manual_seed(0)
    sides = vae.quantizer.latent_side(-1)
    latent = torch.randn(batch, vae.config.z_channels, *sides, generator=generator).to(device, dtype)
    calls = variants(vae.decoder, latent)
    timings = interleave(calls, rounds=rounds, device=device)
    first = next(iter(calls))
    reference = calls[first]().float()
    print(f"{'variant':32} {'ms':>9} {'vs eager':>9} {'compile s':>10} {'difference':>11}")
    rows = []
    for name, timing in timings.items():
        row = {
            "variant": name,
            "latency_ms": 1e3 * timing.median_s,
            "speedup": timing.speedup_over(timings[first]),
            "spread": timing.spread,
            "compile_s": timing.compile_s,
            "largest_difference": float((calls[name]().float() - reference).abs().max()),
        }
        rows.append(row)
        print(
            f"{name:32} {row['latency_ms']:9.2f} {row['speedup']:9.2f} {row['compile_s']:10.1f} "
            f"{row['largest_difference']:11.1e}"
        )
    return {"latent": list(latent.shape), "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="scenes", choices=sorted(VAE_CONFIGS))
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    parser.add_argument("--batch", type=int, default=1, help="images decoded together (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    arguments = parser.parse_args(argv)
    device, dtype = placement(arguments.device, None)
    found = measure(arguments.model, device, dtype, arguments.batch, arguments.rounds)
    settings = {
        "benchmark": "image_decoder",
        "model": arguments.model,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    print(json.dumps(settings | found))


if __name__ == "__main__":
    main()
