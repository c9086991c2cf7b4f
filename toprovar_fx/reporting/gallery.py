"""The pictures of a gallery: every prompt dense and pruned side by side, and which tokens were computed."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..errors import OutputError


def gallery(found: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """HTML of one gallery.

    Args:
        found: what `toprovar gallery` wrote as `gallery.json`.
        folder: where its pictures are.

    Raises:
        OutputError: a picture cannot be read.
    """
    for row in found["rows"]:
        yield f'<h3>{escape(row["prompt"])} <span class="soft">(seed {row["seed"]})</span></h3>'
        yield '<div class="sheet">'
        for image in row["images"]:
            yield _figure(folder / image["file"], image["variant"], _facts(image))
        yield "</div>"
    if any(row["tokens"] for row in found["rows"]):
        yield "<h3>Tokens computed: the darker a place, the fewer layers computed it</h3>"
    for row in found["rows"]:
        if row["tokens"]:
            yield f'<p>{escape(row["prompt"])}</p><div class="sheet">'
            for image in row["tokens"]:
                height, width = image["side"]
                what = f"scale {image['scale']}, {height}x{width}: {image['kept_share']:.0%} computed"
                yield _figure(folder / image["file"], image["variant"], what)
            yield "</div>"


def _facts(image: Mapping[str, Any]) -> str:
    passed, flops = image["sceneeval_pass"], image["flops_share"]
    said = [] if passed is None else [f"SceneEval: {'pass' if passed else 'fail'}"]
    if image["variant"] != "dense":
        psnr = "equal to dense" if image["psnr_db"] is None else f"PSNR {image['psnr_db']:.1f} dB"
        said += [psnr, f"SSIM {image['ssim']:.3f}"]
    if flops is not None:
        said.append(f"{flops:.0%} of the FLOPs")
    return ", ".join(said)


def _figure(file: Path, name: str, caption: str) -> str:
    try:
        data = base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        raise OutputError(f"cannot read the picture '{file}': {error.strerror or error}") from error
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(name)}</b> {escape(caption)}</figcaption></figure>"
    )
