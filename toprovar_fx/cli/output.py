"""Write results so that a file is either whole or not there, and refuse a bad destination before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..loading.writing import check_file as check_file
from ..loading.writing import check_writable as check_writable
from ..loading.writing import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIX = ".png"


def plan_files(out: str | None, names: list[str]) -> list[Path]:
    """Return one writable path per name: ``out`` itself if it is a PNG file, else files in the folder.

    Args:
        out: a path ending in `.png` (for one image), or a folder, which is made when missing; None is the
            current folder.
        names: file names without suffix, one per image.

    Raises:
        OutputError: ``names`` or ``out`` is empty, ``out`` has another suffix, names one file for several
            images, or is in a folder that cannot be written.
    """
    if not names:
        raise OutputError("there is no image to write, expected at least one prompt")
    if out is not None and not out.strip():
        raise OutputError(f"cannot write to '{out}', expected a path ending in {SUFFIX} or a folder")
    path = Path(out if out is not None else ".")
    if path.is_dir() or not path.suffix:
        check_writable(path)
        return [path / f"{name}{SUFFIX}" for name in names]
    if path.suffix.lower() != SUFFIX:
        raise OutputError(f"cannot write '{path}', expected a path ending in {SUFFIX} or a folder")
    if len(names) > 1:
        raise OutputError(f"cannot write {len(names)} images into the one file '{path}', expected a folder")
    check_writable(path.parent)
    return [path]


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` with a file beside ``path``, which gets its name once it is whole.

    An interruption leaves what was at ``path`` before. The folder is made when missing.

    Raises:
        OutputError: the file cannot be written.
    """

    def fill(partial: Path) -> None:
        with partial.open("wb") as file:
            write(file)

    write_whole(path, fill)


def write_png(path: Path, image: Image | NDArray[np.uint8]) -> None:
    """Write a Pillow image, or RGB ``[H, W, 3]``, to ``path`` as PNG, whole or not at all."""
    from PIL.Image import fromarray

    picture = fromarray(image) if isinstance(image, np.ndarray) else image
    write_file(path, lambda file: picture.save(file, format="PNG"))


def print_json(result: Mapping[str, Any]) -> None:
    """Print ``result`` as one line of strict JSON: what is not finite becomes null."""
    print(json.dumps(_finite(result), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
