"""What the processes of tests/test_cli_side_by_side.py measure: themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from toprovar_fx.cli.bench import Turn
from toprovar_fx.cli.variants import Variant
from toprovar_fx.errors import OptionError


def themselves(group: Sequence[Variant], turn: Turn) -> dict[str, Any]:
    """When a group was compiled, and from when to when it was timed; the group of `fast` compiles slowly."""
    if any(variant.name == "fast" for variant in group):
        time.sleep(1.0)
    compiled = time.monotonic()
    with turn():
        begin = time.monotonic()
        time.sleep(0.2)
        end = time.monotonic()
    rows = [
        {"name": variant.name, "process": os.getpid(), "compiled": compiled, "timed": (begin, end)}
        for variant in group
    ]
    late = {"eager": "no time"} if group[-1].name == "balanced" else {}
    rows = [row for row in rows if row["name"] not in late]
    left_out = {f"not {group[-1].name}": group[-1].name, **late}
    return {"rounds": 3, "graphs_compiled_while_timing": 1, "left_out": left_out, "variants": rows}


def one_fails(group: Sequence[Variant], turn: Turn) -> dict[str, Any]:
    """The group of `fast` fails before it has compiled."""
    if any(variant.name == "fast" for variant in group):
        raise OptionError("fast cannot be")
    return themselves(group, turn)
