"""What a report is made of: the files that the measuring commands wrote, recognised by what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.profile import FORMAT as PROFILE_FORMAT
from ..calibration.profile import Profile
from ..errors import OptionError, OutputError
from ..evaluation.frontier_join import join_tables
from ..evaluation.frontier_latency import with_latency
from ..preset_files import FORMAT as PRESET_FORMAT

GALLERY_FORMAT = "toprovar-fx gallery"
# In a folder, the file that says what is in it.
INDEXES = ("table.json", "gallery.json")
# What `toprovar eval --table` writes before them.
ROWS = "rows.jsonl"

Json = Mapping[str, Any]
# What reading a part of a known kind raises where its entries are not those of the kind.
MISFITS = (KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Parts:
    """The content of a report; what is empty is left out of the page.

    Attributes:
        table: of `toprovar eval --table`, joined, with the times of the benches in its rows.
        tables: the files that it is joined from.
        benches: of `toprovar bench --json`, by file, as all that follow.
        ablations: of `benchmarks.ablation`.
        kernels: of `benchmarks.attention_entropy`.
        taps: of `benchmarks.taps`.
        profiles: of `toprovar calibrate`.
        presets: of `toprovar tune`.
        classifiers: of `benchmarks.skip_classifier`.
        galleries: of `toprovar gallery`; the keys are their JSON files, beside which the pictures are.
    """

    table: Json | None = None
    tables: Sequence[str] = ()
    benches: Mapping[str, Json] = field(default_factory=dict)
    ablations: Mapping[str, Json] = field(default_factory=dict)
    kernels: Mapping[str, Json] = field(default_factory=dict)
    taps: Mapping[str, Json] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    presets: Mapping[str, Json] = field(default_factory=dict)
    classifiers: Mapping[str, Json] = field(default_factory=dict)
    galleries: Mapping[str, Json] = field(default_factory=dict)


# Kind of part, the command that writes it, and how it is recognised.
KINDS: Mapping[str, tuple[str, Callable[[Json], bool]]] = {
    "profiles": ("toprovar calibrate", lambda found: found.get("format") == PROFILE_FORMAT),
    "galleries": ("toprovar gallery", lambda found: found.get("format") == GALLERY_FORMAT),
    "presets": (
        "toprovar tune",
        lambda found: found.get("format") == PRESET_FORMAT and {"tune", "test", "tried"} <= found.keys(),
    ),
    "classifiers": (
        "benchmarks.skip_classifier",
        lambda found: {"skip", "uncond", "settings"} <= found.keys(),
    ),
    "benches": ("toprovar bench --json", lambda found: found.get("command") == "bench"),
    "taps": ("benchmarks.taps", lambda found: found.get("benchmark") == "taps"),
    "kernels": ("benchmarks.attention_entropy", lambda found: {"means", "gemm_tflops"} <= found.keys()),
    "tables": (
        "toprovar eval --table",
        lambda found: {"model", "n", "runs", "dense", "rows"} <= found.keys(),
    ),
    "ablations": ("benchmarks.ablation", lambda found: {"split", "dense", "rows"} <= found.keys()),
}


def read_parts(paths: Sequence[str]) -> Parts:
    """Read files and folders, in any order.

    Args:
        paths: JSON files, also what a command printed with JSON in its last line; or folders of
            `toprovar eval --table` and `toprovar gallery`.

    Raises:
        ToProVARError: there is none, one is given twice or cannot be read, is of no known kind or lacks an
            entry of its kind, or tables do not fit together.
    """
    if not paths:
        raise OptionError("there is nothing to report, expected files or folders that measurements wrote")
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    files: set[Path] = set()
    for path in paths:
        file = _file(path)
        if file.resolve() in files:
            raise OptionError(f"'{path}' is given twice, expected it once")
        files.add(file.resolve())
        document = _document(file)
        kind = next((kind for kind, (_, fits) in KINDS.items() if fits(document)), None)
        if kind is None:
            known = ", ".join(command for command, _ in KINDS.values())
            raise OutputError(f"'{file}' is of no known kind, expected what one of these wrote: {known}")
        made = Profile.from_json(document, str(file)) if kind == "profiles" else document
        found[kind][str(file)] = made
    tables = found.pop("tables")
    try:
        table = with_latency(join_tables(tables), list(found["benches"].values())) if tables else None
    except MISFITS as error:
        raise misfit(error) from error
    return Parts(table=table, tables=tuple(tables), **found)


def misfit(error: Exception) -> OutputError:
    """The error for a part that is of a known kind and lacks an entry of it, or has one of another type."""
    what = f"lacks the entry {error}" if isinstance(error, KeyError) else f"has an unexpected entry ({error})"
    return OutputError(f"a part of the report {what}: was it written by another version or cut off?")


def _file(path: str) -> Path:
    file = Path(path)
    if not file.is_dir():
        return file
    inside = [file / name for name in INDEXES if (file / name).is_file()]
    if not inside and (file / ROWS).is_file():
        raise OutputError(
            f"the folder '{path}' holds {ROWS} and no table yet: run the same `toprovar eval --table` again"
        )
    if len(inside) != 1:
        raise OutputError(f"the folder '{path}' has {len(inside)} of {' and '.join(INDEXES)}, expected one")
    return inside[0]


def _document(file: Path) -> Json:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OutputError(f"cannot read '{file}': {reason}") from error
    for part in (text, *text.strip().splitlines()[-1:]):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise OutputError(f"'{file}' holds no JSON object, neither as a whole nor in its last line")
