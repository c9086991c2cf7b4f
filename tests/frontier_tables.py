"""Tables of quality and times of variants, as `eval --table` and `bench` write them."""

from __future__ import annotations

from typing import Any

CATEGORIES = dict.fromkeys(
    ("single_object", "two_objects", "counting", "colors", "position", "color_attribution"), 0.5
)


def row(method: str, share: float, **more: Any) -> dict[str, Any]:
    figures = {"overall": 0.7, "psnr_db": 20.0, "ssim": 0.9, "frechet": 0.1, "gflop_per_image": 1.0}
    found = {"method": method, "budget": None, "options": {}, "runs": 3, "flops_share": share, **figures}
    return {**found, "categories": CATEGORIES, "change": -0.01, "change_ci95": 0.004, **more}


def made(rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A table as `eval --table` writes it."""
    dense = {"runs": 3, "overall": 0.71, "psnr_db": None, "ssim": None, "frechet": 0.1, "flops_share": 1.0}
    dense |= {"gflop_per_image": None, "categories": CATEGORIES}
    settings = {"command": "eval --table", "model": "scenes", "device": "NVIDIA H100", "torch": "2.13.0"}
    return {**settings, "n": 1200, "runs": 3, "dense": dense, "rows": rows, "left_out": {}, **more}


def timed(name: str, median_ms: float, options: dict[str, str] | None = None) -> dict[str, Any]:
    figures = {"median_ms": median_ms, "spread": 0.01, "speedup_vs_inductor": 100 / median_ms}
    return {"name": name, "options": options or {}, **figures, "peak_memory_bytes": 3 * 2**20}


def bench(device: str, *rows: dict[str, Any]) -> dict[str, Any]:
    named = (
        {"device": "cuda", "device_name": device}
        if device != "x86"
        else {"device": "cpu", "device_name": device}
    )
    return {"command": "bench", **named, "graphs_compiled_while_timing": 0, "variants": list(rows)}
