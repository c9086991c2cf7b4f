"""`toprovar convert`: official checkpoints to safetensors, continuing where an earlier run stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import OptionError
from . import arguments as take
from .loading import DTYPES, check_dtype
from .progress import progress
from .values import check_path

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def convert(
    source: take.Source,
    target: take.Target,
    dtype: take.Converted = None,
    max_shard_bytes: take.ShardBytes = "5GB",
) -> dict[str, Any]:
    """Convert ``source`` into the folder ``target`` and return what `--json` prints.

    Raises:
        ToProVARError: an input is not valid, or the target cannot be written.
    """
    for name, value in (("SOURCE", source), ("TARGET", target)):
        check_path(name, value)
    check_dtype(dtype)
    largest = parse_bytes(max_shard_bytes)
    from ..loading import conversion

    chosen = None if dtype is None else DTYPES[dtype]
    with progress("converting") as advance:
        done = conversion.convert(
            Path(source), Path(target), dtype=chosen, max_shard_bytes=largest, on_file=advance
        )
    return {
        "command": "convert",
        "source": source,
        "target": target,
        "dtype": dtype,
        "bytes": done.nbytes,
        "files": dict(done.files),
        "written": list(done.written),
        "is_pipeline": done.is_pipeline,
    }


def parse_bytes(text: str) -> int:
    """Read a number of bytes with an optional unit: `500MB`, `2GiB`.

    Raises:
        OptionError: it is none, or below 1.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    value = int(float(match[1]) * unit) if match and unit else 0
    if value < 1:
        raise OptionError(f"--max-shard-bytes is '{text}', expected bytes such as 5000000000, 500MB or 2GiB")
    return value
