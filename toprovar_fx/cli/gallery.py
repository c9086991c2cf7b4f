"""`toprovar gallery`: the same prompts and seeds, dense and by every preset, and the tokens computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import OptionError
from . import arguments as take
from . import figures, verdict
from .loading import check_dtype, check_model, load
from .output import check_writable, write_file, write_png
from .progress import progress
from .values import MODEL, check_device, check_path, check_prompts, check_seed, slug
from .variants import Variant, parse_variant

if TYPE_CHECKING:
    from ..pipeline import PipelineOutput

DENSE = "dense"
# What no layer computed keeps this share of its light.
DARKEST = 0.15
# Pictures of the tokens: of so many of the largest pruned scales.
SCALES = 2


def gallery(
    prompts: take.Prompts = None,
    presets: take.Presets = None,
    out: take.GalleryOut = "gallery",
    seed: take.Seed = 0,
    model: take.Model = MODEL,
    device: take.Device = None,
    dtype: take.Dtype = None,
) -> dict[str, Any]:
    """Draw and write every picture, and `gallery.json`, which `toprovar report` reads.

    The eager lowering is used: it computes what the compiled graphs compute.

    Args:
        prompts: a row of pictures each.
        presets: variants as for `bench`, without eager and inductor; a column each beside dense.
        out: a folder, made if need be.
        seed: of the first prompt's image; image i uses ``seed + i``.
        model: as for `load`.
        device: None for CUDA where there is one.
        dtype: as for `load`.

    Raises:
        ToProVARError: an input is not valid, or a file cannot be written.
    """
    from ..reporting.parts import GALLERY_FORMAT

    check_model(model)
    prompts = prompts or []
    check_prompts(prompts, model)
    check_seed(seed, len(prompts))
    variants = [_variant(name) for name in dict.fromkeys(presets or ())]
    if not variants:
        raise OptionError("gallery: expected at least one --preset to compare with dense")
    device = check_device(device)
    check_dtype(dtype)
    check_path("--out", out)
    folder = Path(out)
    check_writable(folder)
    with progress("loading", doing=model):
        dense = load(model, device, dtype, len(prompts))
    outputs: dict[str, PipelineOutput] = {}
    pipes = {variant.name: variant.pipeline(dense) for variant in variants}
    with progress("drawing", len(variants) + 1, doing=DENSE) as advance:
        outputs[DENSE] = dense(list(prompts), seed=seed)
        for name, pipe in pipes.items():
            advance(name)
            outputs[name] = pipe(list(prompts), seed=seed)
        advance()
    result = {
        "format": GALLERY_FORMAT,
        "command": "gallery",
        "model": model,
        "device": torch.cuda.get_device_name(device) if device != "cpu" else device,
        "dtype": str(dense.transformer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "rows": [_row(outputs, at, prompt, seed + at, folder) for at, prompt in enumerate(prompts)],
    }
    write_file(
        folder / "gallery.json", lambda file: file.write((json.dumps(result, indent=1) + "\n").encode())
    )
    return {**result, "out": str(folder)}


def darkened(image: NDArray[np.uint8], computed: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image with every token's place as light as the share of the layers that computed it.

    Args:
        image: uint8 ``[H, W, 3]``.
        computed: share of the layers in [0, 1], ``[h, w]``.
    """
    height, width = image.shape[:2]
    rows = np.arange(height) * computed.shape[0] // height
    columns = np.arange(width) * computed.shape[1] // width
    light = DARKEST + (1 - DARKEST) * computed[np.ix_(rows, columns)]
    return (image * light[..., None]).round().astype(np.uint8)


def _variant(name: str) -> Variant:
    variant = parse_variant(name)
    if variant.options is None:
        raise OptionError(f"'{name}' prunes nothing: expected a preset or policy; dense is there anyway")
    return Variant(variant.name, variant.compiler, options={**variant.options, "lowering": "eager"})


def _row(outputs: dict[str, PipelineOutput], at: int, prompt: str, seed: int, folder: Path) -> dict[str, Any]:
    images, tokens = [], []
    reference = figures.images(outputs[DENSE])[at]
    for number, (name, output) in enumerate(outputs.items()):
        image = figures.images(output)[at]
        stem = f"{at:02d}-{number:02d}-{slug(name)}"
        write_png(folder / f"{stem}.png", image)
        (psnr_db,), (ssim,) = figures.fidelity(reference[None], image[None])
        passed = verdict.verdicts(image[None], prompt)
        images.append(
            {
                "variant": name,
                "file": f"{stem}.png",
                "psnr_db": psnr_db if math.isfinite(psnr_db) else None,
                "ssim": ssim,
                "sceneeval_pass": None if passed is None else bool(passed[0]),
                "flops_share": _flops_share(output),
            }
        )
        for scale, computed in sorted(figures.keep_maps(output, at).items())[-SCALES:]:
            file = f"{stem}-scale{scale}.png"
            write_png(folder / file, darkened(image, computed))
            tokens.append(
                {
                    "variant": name,
                    "scale": scale,
                    "side": list(computed.shape),
                    "kept_share": float(computed.mean()),
                    "file": file,
                }
            )
    return {"prompt": prompt, "seed": seed, "images": images, "tokens": tokens}


def _flops_share(output: PipelineOutput) -> float | None:
    own, dense = figures.flops(output), figures.dense_flops(output)
    return own / dense if own is not None and dense else None
