"""How long the products of a layer take one after another, by the library and with weights read ahead.

    python -m benchmarks.layer_chain --model 2b                     # rows of the scales up to 4x4
    python -m benchmarks.layer_chain --model 8b --rows 2,8,32 --layers 6

A layer is its six products with their biases, GELU, residuals and norms, as the compiled model calls them,
and no attention: each reads what the one before wrote. Timed are recorded runs of layers, each with weights
of its own. Weights that are parameters are read while the kernel before still runs, where the card and the
number of rows are such (`toprovar_fx.ops.streamed_product`); others go to the library. The floor (CUDA alone)
is that of reading the weights at the speed of a copy. Medians, by turns; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.infinity_roof import measure_roof
from benchmarks.layer_products import MODELS, microseconds
from toprovar_fx.models.configs import InfinityConfig, config_named
from toprovar_fx.ops.linear import linear
from toprovar_fx.ops.linear_add import linear_add_norm
from toprovar_fx.ops.linear_gelu import linear_gelu

EPS = 1e-6


@dataclass(frozen=True)
class Row:
    """Microseconds of a layer with so many rows."""

    rows: int
    usual_us: float
    ahead_us: float
    floor_us: float | None


class Layer:
    """Random weights of a layer, in bfloat16.

    Args:
        config: of the model.
        device: of the weights.
        wrap: applied to each weight.
    """

    def __init__(
        self, config: InfinityConfig, device: torch.device, wrap: Callable[[Tensor], Tensor]
    ) -> None:
        width, hidden = config.width, config.mlp_width

        def weight(outputs: int, inputs: int) -> Tensor:
            return wrap((torch.randn(outputs, inputs, device=device) * inputs**-0.5).bfloat16())

        self.qkv = weight(3 * width, width)
        self.squares = [weight(width, width) for _ in range(3)]
        self.first, self.second = weight(hidden, width), weight(width, hidden)
        self.bias = torch.zeros(hidden, device=device, dtype=torch.bfloat16)
        self.width = width

    @property
    def weight_bytes(self) -> int:
        """Of all products."""
        every = (self.qkv, *self.squares, self.first, self.second)
        return sum(each.numel() * each.itemsize for each in every)

    def __call__(self, hidden: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """A hidden state `[1, rows, C]` and its norm behind the layer."""
        bias = self.bias[: self.width]
        modulation = [bias], [bias], True, EPS
        rows = hidden.shape[1]
        # A third of what lies in memory, in place of an attention.
        given = linear(normed, self.qkv).view(1, 3 * rows, self.width)[:, :rows]
        for square in self.squares:
            hidden, given = linear_add_norm(given, square, bias, hidden, [], *modulation)
        inner = linear_gelu(given, self.first, self.bias)
        return linear_add_norm(inner, self.second, bias, hidden, [], *modulation)


def measure(
    config: InfinityConfig, rows: Sequence[int], layers: int, device: torch.device, rounds: int
) -> list[Row]:
    """Time layers of plain tensors and of parameters with the same random numbers, by turns."""
    floor = None
    chains: list[list[Layer]] = []
    for wrap in (torch.Tensor.detach, lambda weight: Parameter(weight, requires_grad=False)):
        torch.manual_seed(0)
        chains.append([Layer(config, device, wrap) for _ in range(layers)])
    if device.type == "cuda":
        floor = 1e6 * chains[0][0].weight_bytes / measure_roof(torch.bfloat16).bytes_per_s
    found = []
    for number in rows:
        start = torch.randn(1, number, config.width, device=device).bfloat16()

        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for chain, own in zip(chains, times, strict=True):
                own.append(microseconds(partial(run, chain, start), device, 5) / layers)
        usual, ahead = map(statistics.median, times)
        found.append(Row(number, usual, ahead, floor))
    return found


def run(layers: Sequence[Layer], start: Tensor) -> Tensor:
    """The norm behind the last of some layers; `start` is hidden state and norm before the first."""
    hidden = normed = start
    for layer in layers:
        hidden, normed = layer(hidden, normed)
    return normed


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="2b")
    parser.add_argument("--rows", default="2,8,32", help="comma-separated")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(given)
    device = torch.device(chosen.device)
    rows = [int(number) for number in chosen.rows.split(",")]
    found = measure(config_named(MODELS[chosen.model]), rows, chosen.layers, device, chosen.rounds)
    print(f"rows   {'us of a layer: library':>24} {'read ahead':>12} {'floor':>8}")
    for row in found:
        floor = "-" if row.floor_us is None else f"{row.floor_us:.1f}"
        print(f"{row.rows:>4}   {row.usual_us:>24.1f} {row.ahead_us:>12.1f} {floor:>8}")
    record: dict[str, Any] = {
        "benchmark": "layer_chain",
        "model": chosen.model,
        "layers": chosen.layers,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "rows": [asdict(row) for row in found],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
