"""`toprovar report`: what several runs wrote, joined into one table and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .frontier import write_forms
from .output import check_writable


def report(out: str, *, tables: Sequence[str]) -> dict[str, Any]:
    """Join tables of `toprovar eval --table` and write the whole into the folder ``out``.

    Args:
        out: a folder, made if need be.
        tables: folders, or their JSON files: disjoint rows of the same model, prompts and runs.

    Returns:
        What `--json` prints.

    Raises:
        ToProVARError: an input is not valid, or the folder cannot be written.
    """
    from ..evaluation.frontier_join import read_tables

    joined = {**read_tables(tables), "command": "report"}
    folder = Path(out)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_forms(folder, joined)
    return {**joined, "out": str(folder)}
