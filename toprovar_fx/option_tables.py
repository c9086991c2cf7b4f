"""Options and presets as Markdown tables."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from .option_fields import FIELDS
from .presets import PRESETS


def options_table() -> str:
    """Return a Markdown table of every option: name, valid values, default, meaning."""
    rows = ["| Option | Values | Default | Meaning |", "|---|---|---|---|"]
    for name, spec in FIELDS.items():
        values = spec.metadata["values"].replace("|", "\\|")
        rows.append(f"| `{name}` | {values} | `{_default_text(spec)}` | {spec.metadata['help']} |")
    return "\n".join(rows) + "\n"


def presets_table() -> str:
    """Return a Markdown table of the presets and what each changes from the defaults."""
    rows = ["| Preset | Changes |", "|---|---|"]
    for name, values in PRESETS.items():
        changes = ", ".join(f"`{option}={value!r}`" for option, value in values.items())
        rows.append(f"| `{name}` | {changes or 'the defaults'} |")
    return "\n".join(rows) + "\n"


def _default_text(spec: Field[Any]) -> str:
    default = spec.metadata["default"]
    return f"{default:.4g}" if isinstance(default, float) else repr(default)
