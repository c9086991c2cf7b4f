"""Read the figures of a generation: the one place that knows what pipeline outputs and reports look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline, PipelineOutput


def images(output: PipelineOutput) -> NDArray[np.uint8]:
    """Return the images, uint8 ``[B, H, W, 3]``."""
    return np.asarray(output.images)


def total_ms(output: PipelineOutput) -> float:
    """Return the milliseconds of the whole generation."""
    parts = output.latency_ms
    return float(parts["total"]) if "total" in parts else float(sum(parts.values()))


def parts_ms(output: PipelineOutput) -> dict[str, float]:
    """Return the milliseconds of each part of the generation."""
    return {name: float(value) for name, value in output.latency_ms.items() if name != "total"}


def flops(output: PipelineOutput) -> float | None:
    """Return the transformer's FLOPs per image, or None if this backend took no part in the generation."""
    return None if output.report is None else float(output.report.flops) / len(output.images)


def dense_flops(output: PipelineOutput) -> float | None:
    """Return the FLOPs per image that the transformer would take dense, or None as in `flops`."""
    return None if output.report is None else float(output.report.flops_dense) / len(output.images)


def kept_share(output: PipelineOutput) -> float | None:
    """Return the kept share of all tokens of all layers and scales, or None as in `flops`."""
    if output.report is None:
        return None
    kept, tokens = 0, 0
    for row in output.report.kept:
        kept, tokens = kept + row[2], tokens + row[3]
    return kept / tokens if tokens else 1.0


def fire_rates(output: PipelineOutput) -> dict[str, float]:
    """Return the share of layer runs that were dense, tapped, pruned and skipped; empty without a report."""
    return {} if output.report is None else dict(output.report.fire_rates)


def pruned_layers(output: PipelineOutput) -> dict[str, float]:
    """Return per scale the share of layers that computed fewer than all tokens; empty without a report."""
    if output.report is None:
        return {}
    layers: dict[int, int] = {}
    fired: dict[int, int] = {}
    for scale, _, kept, tokens in output.report.kept:
        layers[scale] = layers.get(scale, 0) + 1
        fired[scale] = fired.get(scale, 0) + (kept < tokens)
    return {str(scale): fired[scale] / layers[scale] for scale in sorted(layers)}


def keep_maps(output: PipelineOutput, image: int) -> dict[int, NDArray[np.float32]]:
    """Return for each pruned scale which share of the layers computed a token, float32 ``[h, w]``, 0 to 1."""
    if output.report is None:
        return {}
    maps = {}
    for scale, values in output.report.keep_maps.items():
        array = np.asarray(values, dtype=np.float32)
        maps[int(scale)] = array[image] if array.ndim == 3 else array
    return maps


def fidelity(reference: NDArray[np.uint8], images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return PSNR in dB (infinite for equal images) and SSIM of every pair of images ``[B, H, W, 3]``."""
    from ..evaluation import psnr, ssim

    pair = torch.from_numpy(reference), torch.from_numpy(images)
    return psnr(*pair).tolist(), ssim(*pair).tolist()


def fallbacks(output: PipelineOutput) -> list[str]:
    """Return one line per place that ran dense although it could have been pruned, with the reason."""
    return [] if output.report is None else [str(reason) for reason in output.report.fallbacks]


def sides(output: PipelineOutput) -> list[list[int]]:
    """Return height and width in tokens of every scale, whether it ran or not; empty without a report."""
    return [] if output.report is None else [list(side) for side in output.report.schedule.sides]


def roles(output: PipelineOutput) -> dict[int, float]:
    """Return the layer scope R by layer, 0 global and 1 detail, where it was measured."""
    return {} if output.report is None else dict(output.report.roles)


def entropies(output: PipelineOutput) -> dict[tuple[int, int], float]:
    """Return the mean attention entropy in nats by scale and layer, where it was measured."""
    return {} if output.report is None else dict(output.report.entropies)


def kept_by_place(output: PipelineOutput) -> dict[tuple[int, int], float]:
    """Return the kept share of the tokens by scale and layer, where they ran."""
    rows = [] if output.report is None else output.report.kept
    return {(scale, layer): kept / tokens for scale, layer, kept, tokens in rows}


def count_dense_flops(pipe: InfinityPipeline, prompt: str, seed: int = 0) -> float:
    """Count the FLOPs of the eager transformer for one image of ``prompt`` with torch's counter."""
    from ..flops import flop_counter

    counter = flop_counter()
    with counter:
        pipe(prompt, seed=seed)
    counts = counter.get_flop_counts()
    name = type(pipe.transformer).__name__
    return float(sum(counts[name].values() if name in counts else counts["Global"].values()))
