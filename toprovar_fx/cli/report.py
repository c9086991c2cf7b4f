"""`toprovar report`: what measurements wrote, joined into one table and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..reporting.parts import INDEXES
from . import arguments as take
from .frontier import write_forms
from .output import check_writable, write_file
from .values import check_path

PAGE = "report.html"


def report(out: take.ReportOut, parts: take.ReportParts = None) -> dict[str, Any]:
    """Write one page of all parts into the folder ``out``, and their tables joined into one.

    Args:
        out: a folder, made if need be.
        parts: files and folders, see `toprovar_fx.reporting.parts.read_parts`.

    Returns:
        What `--json` prints.

    Raises:
        ToProVARError: an input is not valid, or the folder cannot be written.
    """
    from ..reporting.page import as_page
    from ..reporting.parts import read_parts

    check_path("OUT", out)
    folder = Path(out)
    _check_own(folder)
    found = read_parts(parts or ())
    page = as_page(found)
    check_writable(folder)
    write_file(folder / PAGE, lambda file: file.write(page.encode()))
    if found.table is not None:
        write_forms(folder, found.table)
    files = sorted(file.name for file in folder.iterdir() if file.stem in ("report", "table"))
    return {
        "command": "report",
        "parts": list(parts or ()),
        "out": str(folder),
        "files": files,
        "table": found.table,
    }


def _check_own(folder: Path) -> None:
    """Refuse to write over measurements: a forgotten OUT makes the first part the folder of the report."""
    held = [name for name in INDEXES if (folder / name).exists()]
    if held and not (folder / PAGE).exists():
        raise OutputError(
            f"'{folder}' holds {held[0]} and no report, expected a folder for the report before its parts: "
            "toprovar report OUT PART..."
        )
