"""The candidates of `benchmarks.attention_entropy`: our operator's uses, and the kernels' configurations.

python -m benchmarks.attention_entropy_variants NAME [WIDTH]    # compile one configuration and check it
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch

from toprovar_fx.ops import attention_with_entropy
from toprovar_fx.ops.triton_launch import HopperTiles, Tiles, launch

Call = Callable[..., Any]

# (queries, keys, warps, stages)
PLAIN = (
    (128, 128, 8, 2),
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 64, 4, 3),
    (64, 64, 4, 3),
    (64, 128, 4, 2),
    (128, 32, 4, 4),
)


def entropy_variants(first_key: int) -> dict[str, Call]:
    """What users can ask of the operator; "own scale": entropies over the keys from `first_key` on."""
    return {
        "ours": lambda q, k, v: attention_with_entropy(q, k, v, 1.0, False),
        "ours, mean of heads": lambda q, k, v: attention_with_entropy(q, k, v, 1.0),
        "ours, own scale, mean of heads": lambda q, k, v: attention_with_entropy(
            q, k, v, 1.0, True, first_key
        ),
        "ours without entropy": lambda q, k, v: launch(q, k, v, 1.0, False, with_entropy=False),
    }


def configurations(width: int) -> dict[str, Tiles | HopperTiles]:
    """Tiles by name, for heads of this width."""
    found: dict[str, Tiles | HopperTiles] = {}
    keys, stages = ((128, 64), (2, 3)) if width <= 128 else ((64, 32), (2, 3))
    for hold, turns, stage in product((True, False), (True, False), stages):
        if width > 128 and stage > 2:
            continue  # more than the shared memory
        name = f"hopper {keys[0]} s{stage}{' hold' * hold}{' turns' * turns}"
        found[name] = HopperTiles(keys[0], stage, hold, turns)
    found[f"hopper {keys[1]} s4 hold"] = HopperTiles(keys[1], 4, True, False)
    for tma in (True, False):
        for tiles in PLAIN if tma else PLAIN[:3]:
            name = "plain {}x{} w{} s{}".format(*tiles) + " tma" * tma
            found[name] = Tiles(*tiles, tma)
    return found


def tuning_variants(width: int) -> tuple[dict[str, Call], dict[str, str]]:
    """Every configuration that passes its check, with the entropy and without it; and why others do not."""
    tiles = configurations(width)
    with ThreadPoolExecutor(16) as pool:
        reports = dict(zip(tiles, pool.map(_checked, tiles, [width] * len(tiles)), strict=True))
    calls: dict[str, Call] = {}
    for name, report in reports.items():
        if not report:
            call = partial(launch, scale=1.0, mean_heads=False, tiles=tiles[name])
            calls[name] = call
            calls[f"{name} -H"] = partial(call, with_entropy=False)
    return calls, {name: report for name, report in reports.items() if report}


def _checked(name: str, width: int) -> str:
    """Compile and check in a process of its own, so that a hang or a fault costs one configuration."""
    command = [sys.executable, "-m", "benchmarks.attention_entropy_variants", name, str(width)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        return "hangs, or takes over 100 s to compile"
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-300:]


def check(name: str, width: int) -> None:
    """Compare one configuration with float64 at a few ragged shapes; compiles all that the benchmark uses."""
    tiles = configurations(width)[name]
    for queries, keys, first_key in ((192, 320, 0), (70, 131, 0), (200, 713, 513), (1, 5, 4)):
        shapes = [(2, 4, rows, width) for rows in (queries, keys, keys)]
        q, k, v = (torch.randn(shape, device="cuda").bfloat16() for shape in shapes)
        s = q.double() @ k.double().mT / width**0.5
        logp = torch.log_softmax(s[..., first_key:], -1)
        entropy = -(logp.exp() * logp).sum(-1)
        for mean in (False, True):
            out, found = launch(q, k, v, width**-0.5, mean, first_key, tiles=tiles)
            wrong_out = float((out.double() - s.softmax(-1) @ v.double()).abs().max())
            wrong = float((found.double() - (entropy.mean(1) if mean else entropy)).abs().max())
            assert wrong_out < 2e-2, f"output off by {wrong_out:.1e} at {queries}x{keys} from {first_key}"
            assert wrong < 2e-3, f"entropy off by {wrong:.1e} at {queries}x{keys} from {first_key}"
        plain, _ = launch(q, k, v, width**-0.5, False, tiles=tiles, with_entropy=False)
        wrong_out = float((plain.double() - s.softmax(-1) @ v.double()).abs().max())
        assert wrong_out < 2e-2, f"without entropy, output off by {wrong_out:.1e} at {queries}x{keys}"


if __name__ == "__main__":
    check(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128)
