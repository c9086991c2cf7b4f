"""Presets in files: options as JSON with where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import OptionError, OutputError
from .whole_files import replace_file

FORMAT, VERSION = "toprovar-preset", 1
SUFFIX = ".json"


def read_preset(path: str | Path) -> dict[str, object]:
    """The options in a preset file.

    Raises:
        OptionError: no such file, not a preset file, or one of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"preset='{path}': cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"preset='{path}': expected a preset file in JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OptionError(f'preset=\'{path}\': expected "format": "{FORMAT}", as `toprovar tune` writes')
    if content.get("version") != VERSION:
        raise OptionError(f"preset='{path}': expected version {VERSION}, not {content.get('version')!r}")
    options = content.get("options")
    if not isinstance(options, dict) or str(options.get("preset", "")).endswith(SUFFIX):
        raise OptionError(f"preset='{path}': expected \"options\", a mapping of option names to values")
    return options


def write_preset(path: str | Path, options: Mapping[str, object], provenance: Mapping[str, Any]) -> None:
    """Write a preset file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, "options": dict(options), **provenance}
    text = json.dumps(content, indent=1) + "\n"
    try:
        replace_file(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}") from error
