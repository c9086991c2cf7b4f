"""Gates on the host against gates in the graph: time of a generation's scales, and whether results are equal.

    python -m benchmarks.gates [--rounds 7] [--seconds 150] [--device cuda] [--json]

"small" is a transformer of 4 layers and 64 channels, where the host's part of the time is largest; "demo" the
demo model with its ten scales. Tokens: `keep`, so that K is known and only the tokens are chosen. Branches: D
is found online, and a layer runs whole, on one K, or not at all. All variants of a model run interleaved.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import toprovar_fx
from toprovar_fx import InfinityPipeline
from toprovar_fx.evaluation.timing import interleave
from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.runtime.generation import Generation
from toprovar_fx.schedules import Schedule

Row = Mapping[str, object]
BRANCHES: Row = {
    "preset": "criterion",
    "entropy_source": "dense_layer",
    "buckets": (0.5,),
    "alpha_min": 0.4,
    "beta": 0.005,
    "layer_skip_below": 0.2,
}
SETTINGS: Mapping[str, Row] = {"tokens": {"preset": "balanced"}, "branches": BRANCHES}
SMALL = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8, 12)))


class Loop:
    """Runs all scales of an Infinity transformer on random inputs, without sampling.

    Args:
        model: the transformer.
        schedule: its scales.
        device: to run on; in bfloat16 on CUDA.
    """

    def __init__(self, model: Infinity, schedule: Schedule, device: torch.device) -> None:
        self.device, self.dtype = device, torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model, self.schedule, self.config = model.to(device, self.dtype), schedule, model.config
        model.set_schedule(schedule)
        source = torch.Generator().manual_seed(0)
        config = self.config
        text = torch.randn(2, config.text_maxlen, config.text_channels, generator=source)
        lengths = torch.tensor([config.text_maxlen, 1], device=device)
        with torch.inference_mode():
            self.context = model.prepare_text(text.to(device, self.dtype), lengths)
        drawn = [torch.randn(2, n, config.width, generator=source) for n in schedule.tokens]
        self.inputs = [tokens.to(device, self.dtype) for tokens in drawn]

    def run(self, forward: Callable[..., Tensor]) -> tuple[list[Tensor], Generation]:
        """Logits of every scale that ran."""
        logits = []
        with torch.inference_mode(), toprovar_fx.generation(self.schedule, 1) as run:
            cache = KVCache(CacheSizes.of(self.config, 2, self.schedule.ends[-1], self.dtype), self.device)
            for scale, hidden in enumerate(self.inputs):
                if not run.begin_scale(scale):
                    break
                logits.append(forward(hidden, self.context, cache, self.schedule.ends[scale]))
        return logits, run


def small(device: torch.device) -> Loop:
    """A transformer so small that Python's part of the time shows."""
    config = InfinityConfig(
        depth=4,
        width=64,
        heads=2,
        bits=4,
        text_channels=16,
        text_maxlen=8,
        block_chunks=1,
        text_pool_heads=2,
        rope_grid=12,
        text_multiple=8,
    )
    torch.manual_seed(0)
    model = Infinity(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Loop(model, SMALL, device)


def demo(device: torch.device) -> Loop:
    """The shipped model."""
    pipe = InfinityPipeline.from_pretrained("scenes")
    assert isinstance(pipe.transformer, Infinity)
    return Loop(pipe.transformer, pipe.schedule, device)


def measure(loop: Loop, rounds: int) -> dict[str, Any]:
    """Medians and ratios of all settings of one model."""
    forwards = {"dense": torch.compile(loop.model)}
    for setting, options in SETTINGS.items():
        for gate in ("host", "graph"):
            given: dict[str, Any] = {**options, "gate": gate}
            forwards[f"{setting}, {gate}"] = torch.compile(loop.model, backend="toprovar", options=given)
    outcomes = {name: loop.run(forward) for name, forward in forwards.items()}
    calls = {name: lambda forward=forward: loop.run(forward) for name, forward in forwards.items()}
    timings = interleave(calls, rounds=rounds, device=loop.device)
    rows: dict[str, Any] = {}
    for name, timing in timings.items():
        logits, run = outcomes[name]
        rows[name] = {"ms": timing.median_s * 1e3, "spread": timing.spread}
        rows[name]["vs_inductor"] = timing.speedup_over(timings["dense"])
        if name.endswith("graph"):
            host = name.replace("graph", "host")
            rows[name]["vs_host"] = timing.speedup_over(timings[host])
            pairs = zip(logits, outcomes[host][0], strict=True)
            rows[name]["largest_difference"] = max(float((a - b).abs().max()) for a, b in pairs)
        for controller in run.controllers:
            arms = [entry.arm for entry in controller.ledger.runs]
            rows[name]["arms"] = {arm: arms.count(arm) for arm in sorted(set(arms))}
            rows[name]["fallbacks"] = controller.ledger.reasons()
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="small,demo", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=600, help="start no further model after this time")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    chosen = parser.parse_args()
    started = time.monotonic()
    card = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    versions = {"device": card, "torch": torch.__version__, "threads": torch.get_num_threads()}
    result: dict[str, Any] = {**versions, "models": {}}
    for name in chosen.models.split(","):
        if time.monotonic() - started > chosen.seconds:
            break
        # Dynamo would take the sizes of the model before for what may vary in this one.
        torch.compiler.reset()
        with torch._dynamo.config.patch(recompile_limit=64):
            loop = {"small": small, "demo": demo}[name](torch.device(chosen.device))
            rows = measure(loop, chosen.rounds)
        result["models"][name] = rows
        for variant, row in rows.items():
            print(
                f"{name:6s} {variant:16s} {row['ms']:8.1f} ms +-{row['spread']:4.0%}  vs Inductor "
                f"{row['vs_inductor']:.2f}  vs host {row.get('vs_host', 1):.3f}  {row.get('arms', '')}",
                flush=True,
            )
    if chosen.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
