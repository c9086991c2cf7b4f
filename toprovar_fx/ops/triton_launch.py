"""Chooses a kernel and tiles for attention with entropy on CUDA, and launches it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .cards import HOPPER, capability
from .triton_attention import attention_kernel

# The kernel of `gluon_attention` is taken where it applies; else the plain one everywhere.
PREFER_HOPPER_KERNEL = True
# Gluon changes with every release; these compile it.
GLUON_KNOWN = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


@dataclass(frozen=True)
class Tiles:
    """Block shapes of the plain kernel and how they are compiled.

    Attributes:
        queries: rows of a tile.
        keys: keys per step.
        warps: warps of a program.
        stages: tiles of keys in flight.
        tma: load by the tensor memory accelerator (Hopper and later) where the operands allow it.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    tma: bool = False


@dataclass(frozen=True)
class HopperTiles:
    """How the kernel for Hopper is compiled; its tiles have 128 queries.

    Attributes:
        keys: keys per step.
        stages: tiles of keys, and as many of values, in flight.
        hold: keep the exponentials where they overlap with the product with the values.
        turns: make the two consumers take turns in issuing their products.
    """

    keys: int
    stages: int
    hold: bool = True
    turns: bool = False


def default_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tiles | HopperTiles:
    """The kernel and tiles for these operands, found with ``benchmarks/attention_entropy.py --tune``."""
    width = triton.next_power_of_2(q.shape[-1])
    if q.dtype == torch.float32:
        # Six products per product: more does not fit into the registers.
        return Tiles(64, 32, 4, 2) if width <= 64 else Tiles(64, 16, 4, 2)
    card = capability(q.device)
    maps = card >= HOPPER and all(allows_tma(x) for x in (q, k, v))
    # The output's rows of E numbers are mapped too.
    if PREFER_HOPPER_KERNEL and GLUON_KNOWN and card == HOPPER and maps and q.shape[-1] % 8 == 0:
        return HopperTiles(128, 2, hold=False, turns=True) if width <= 128 else HopperTiles(64, 2)
    if width > 128:
        # Without maps the larger tiles need more shared memory than later cards than Hopper may have.
        return Tiles(128, 64, 8, 2, True) if maps else Tiles(64, 32, 4, 2)
    return Tiles(64, 64, 4, 3, True) if card >= HOPPER else Tiles(128, 64, 8 if width > 64 else 4, 2)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mean_heads: bool = True,
    first_key: int = 0,
    *,
    tiles: Tiles | HopperTiles | None = None,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run a kernel; results and shapes as `attention_with_entropy`.

    Args:
        q: Queries ``[B, H, Lq, E]``, float32, bfloat16 or float16, E at most 256.
        k: Keys ``[B, Hk, Lk, E]``.
        v: Values, like keys.
        scale: Factor of the logits.
        mean_heads: Average the entropies over the heads.
        first_key: Number of leading keys that do not count for the entropy.
        tiles: The kernel and its tiles; by default :func:`default_tiles`.
        with_entropy: False leaves the entropies unwritten: plain attention, to measure what they cost.
    """
    batch, heads, queries, width = q.shape
    if scale <= 0:
        # The kernels start from a peak of -inf, of which a factor of 0 makes NaN.
        q, scale = -q, max(-scale, 1e-30)
    tiles = tiles or default_tiles(q, k, v)
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    entropy = q.new_empty((batch, queries) if mean_heads else (batch, heads, queries), dtype=torch.float32)
    count = triton.cdiv(queries, 128 if isinstance(tiles, HopperTiles) else tiles.queries)
    # Sums over heads, then counters of finished heads: one per tile, two in the Hopper kernel.
    size = batch * (queries + 2 * count) if mean_heads and with_entropy else 0
    sums = torch.zeros(size, dtype=torch.int64, device=q.device)
    results = (out, entropy, sums, sums[batch * queries :])
    sizes = (queries, k.shape[2], first_key, heads, heads // k.shape[1], scale * math.log2(math.e))
    wants = {"ENTROPY": with_entropy, "MEAN": mean_heads, "REST": first_key > 0}
    grid = (count, batch * heads)
    if isinstance(tiles, HopperTiles):
        launch_hopper(tiles, (q, k, v), results, sizes, grid, wants)
        return out, entropy
    block_d = max(16, triton.next_power_of_2(width))
    tma = tiles.tma and all(allows_tma(x) for x in (q, k, v))
    operands = (
        TensorDescriptor(x, x.shape, x.stride(), [1, 1, rows, block_d]) if tma else x
        for x, rows in ((q, tiles.queries), (k, tiles.keys), (v, tiles.keys))
    )
    # For float32 operands: six products of thirds of the mantissa, on tensor cores; not in the interpreter.
    precision = "bf16x6" if q.is_cuda else "ieee"
    attention_kernel[grid](
        *operands, *results, *sizes, *q.stride(), *k.stride(), *v.stride(), *out.stride()[:3],
        D=width, BLOCK_M=tiles.queries, BLOCK_N=tiles.keys, BLOCK_D=block_d,
        **wants, EXACT=q.dtype == torch.float32, PRECISION=precision, TMA=tma,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, entropy


def launch_hopper(
    tiles: HopperTiles,
    operands: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, ...],
    sizes: tuple[float, ...],
    grid: tuple[int, int],
    wants: dict[str, bool],
) -> None:
    """Run `gluon_attention.hopper_kernel`, whose arguments these are in order."""
    from .gluon_attention import hopper_kernel

    hopper_kernel[grid](
        *hopper_maps((*operands, results[0]), tiles.keys), *results[1:], *sizes,
        D=_padded(operands[0]), BLOCK_N=tiles.keys, STAGES=tiles.stages, HOLD=tiles.hold, TURNS=tiles.turns,
        **wants, num_warps=4,
    )  # fmt: skip


def hopper_maps(tensors: tuple[Tensor, Tensor, Tensor, Tensor], keys: int) -> list[Any]:
    """Tensor maps of queries, keys, values and output, in tiles of 64 queries and so many keys."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as HopperDescriptor

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return [
        HopperDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, _padded(x)], layout)
        for x, rows in zip(tensors, (64, keys, keys, 64), strict=True)
    ]


def _padded(x: Tensor) -> int:
    """Channels of a tile."""
    return max(64, int(triton.next_power_of_2(x.shape[-1])))


def allows_tma(x: Tensor) -> bool:
    """Whether a tensor map can describe ``x``: addresses and strides in multiples of 16 bytes, none of 0.

    Strides of 0 are those of expanded dimensions.
    """
    aligned = all(stride * x.itemsize % 16 == 0 < stride for stride in x.stride()[:3])
    return aligned and x.stride(3) == 1 and x.data_ptr() % 16 == 0
