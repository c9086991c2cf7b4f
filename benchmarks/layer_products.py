"""How long the matrix products of a layer take for few rows, against what the card could do.

    python -m benchmarks.layer_products --model 2b                  # rows of the scales up to 24x24
    python -m benchmarks.layer_products --model 8b --rows 2,128,512 --parts 2,4,8

A product of few rows reads its weights and does little else. Timed are recorded runs of it over as many
weights as do not fit into the card's cache, and over one that stays there; GELU and bias are part of it, as
in the model. The floor (CUDA alone) is the larger of two: operations at the speed of a product of 8192, and
weights, inputs and results at that of a copy. ``parts``: sums over parts of the inputs' channels, in float32,
which who reads them adds up (`toprovar_fx.ops.split_product`). Medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.infinity_roof import Roof, measure_roof
from toprovar_fx.models.configs import InfinityConfig, config_named
from toprovar_fx.ops.linear_gelu import linear_gelu
from toprovar_fx.ops.split_product import sums_of_parts
from toprovar_fx.ops.streamed_product import weights_stay

MODELS = {"2b": "infinity-2b", "8b": "infinity-8b"}
# Larger than the caches of cards.
MEMORY_BYTES = 400_000_000


@dataclass(frozen=True)
class Product:
    """One of a layer's products.

    Attributes:
        name: what it is for.
        outputs, inputs: channels.
        gelu: whether it ends with GELU.
        times: how many of it a layer has.
    """

    name: str
    outputs: int
    inputs: int
    gelu: bool = False
    times: int = 1

    @property
    def weight_bytes(self) -> int:
        """In bfloat16."""
        return 2 * self.outputs * self.inputs

    def floor_s(self, rows: int, roof: Roof) -> float:
        """Seconds that the operations take, or what is read and written, whichever is longer."""
        flops = 2 * rows * self.outputs * self.inputs
        moved = self.weight_bytes + 2 * rows * (self.inputs + self.outputs)
        return max(flops / roof.flops_per_s, moved / roof.bytes_per_s)


@dataclass(frozen=True)
class Row:
    """Microseconds of one product of so many rows."""

    product: str
    times: int
    rows: int
    memory_us: float
    cache_us: float
    parts_us: dict[int, float]
    floor_us: float | None


def products(config: InfinityConfig) -> list[Product]:
    """Those of a layer that read every token."""
    width, hidden = config.width, config.mlp_width
    return [
        Product("queries, keys, values", 3 * width, width),
        Product("out, and text queries and out", width, width, times=3),
        Product("first of the MLP", hidden, width, gelu=True),
        Product("second of the MLP", width, hidden),
    ]


def run_of(product: Product, x: Tensor, weights: Sequence[Tensor], bias: Tensor) -> Callable[[], None]:
    """The product with each weight in turn."""

    def run() -> None:
        for weight in weights:
            if product.gelu:
                linear_gelu(x, weight, bias)
            else:
                F.linear(x, weight, bias)

    return run


def parts_of(x: Tensor, weights: Sequence[Tensor], parts: int) -> Callable[[], None]:
    """The same without bias and GELU, as several sums in float32."""

    def run() -> None:
        for weight in weights:
            sums_of_parts(x, weight, parts)

    return run


def microseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a run; on CUDA of its recording, by the device's own clock."""
    if device.type != "cuda":
        return 1e6 * statistics.median(_seconds(run) for _ in range(repeats))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with weights_stay(), torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats + 2):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(1e3 * before.elapsed_time(after))
    return statistics.median(times[2:])


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(
    product: Product,
    rows: Sequence[int],
    device: torch.device,
    roof: Roof | None,
    repeats: int,
    parts: Sequence[int],
) -> list[Row]:
    """Time one product for every number of rows."""
    dtype = torch.bfloat16
    count = max(2, MEMORY_BYTES // product.weight_bytes) if device.type == "cuda" else 2
    scale = product.inputs**-0.5
    weights = [
        torch.randn(product.outputs, product.inputs, device=device, dtype=dtype) * scale for _ in range(count)
    ]
    bias = torch.randn(product.outputs, device=device, dtype=dtype)
    found = []
    for number in rows:
        x = torch.randn(number, product.inputs, device=device, dtype=dtype)
        every = microseconds(run_of(product, x, weights, bias), device, repeats) / count
        one = microseconds(run_of(product, x, weights[:1] * count, bias), device, repeats) / count
        apart = {}
        if device.type == "cuda":
            runs = {number: parts_of(x, weights, number) for number in parts}
            apart = {number: microseconds(run, device, repeats) / count for number, run in runs.items()}
        floor = None if roof is None else 1e6 * product.floor_s(number, roof)
        found.append(Row(product.name, product.times, number, every, one, apart, floor))
    return found


def show(found: Sequence[Row]) -> None:
    parts = list(dict.fromkeys(number for row in found for number in row.parts_us))
    titles = "".join(f"{f'{number} parts':>9}" for number in parts)
    print(f"{'product':<32} rows   us, weights in memory  in the cache   floor{titles}")
    for row in found:
        times = (row.memory_us, row.cache_us, row.floor_us, *map(row.parts_us.get, parts))
        memory, cache, floor, *apart = ("-" if time is None else f"{time:.1f}" for time in times)
        columns = "".join(f"{time:>9}" for time in apart)
        print(f"{row.times} x {row.product:<28} {row.rows:>4} {memory:>23} {cache:>13} {floor:>7}{columns}")
    for number in dict.fromkeys(row.rows for row in found):
        alike = [row for row in found if row.rows == number]
        took = sum(row.times * row.memory_us for row in alike)
        floor_us = sum(row.times * (row.floor_us or 0) for row in alike)
        print(f"all products of a layer, {number} rows: {took:.1f} us, floor {floor_us:.1f}")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="2b")
    parser.add_argument("--rows", default="2,8,32,72,128,288,512,800,1152", help="comma-separated")
    parser.add_argument("--parts", default="2,4", help="comma-separated, on CUDA (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(given)
    rows, parts = ([int(number) for number in given.split(",")] for given in (chosen.rows, chosen.parts))
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    roof = measure_roof(torch.bfloat16) if device.type == "cuda" else None
    found: list[Row] = []
    for product in products(config_named(MODELS[chosen.model])):
        found += measure(product, rows, device, roof, chosen.repeats, parts)
    show(found)
    record: dict[str, Any] = {
        "benchmark": "layer_products",
        "model": chosen.model,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "roof": None if roof is None else asdict(roof),
        "rows": [asdict(row) for row in found],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
