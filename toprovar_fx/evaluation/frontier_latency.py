"""Times and memory of the rows of a table, from runs of `toprovar bench` on one or several devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
# What dense is: the fastest of these that was timed beside the others.
DENSE = ("inductor", "eager")


def device_label(bench: Json) -> str:
    """What readers call the device of one `toprovar bench`."""
    name = str(bench["device_name"])
    return f"CPU {name}" if bench.get("device") == "cpu" else name


def with_latency(table: Json, benches: Sequence[Json]) -> dict[str, Any]:
    """The table with "latency" in its rows and in dense: by device, milliseconds, speedup and peak memory.

    A row of a bench belongs to the row of the table that has the same options; what was not timed has none.

    Args:
        table: as `toprovar eval --table` writes it.
        benches: as `toprovar bench --json` prints them; the last one of a device counts.
    """
    rows = {name: dict(row) for name, row in table["rows"].items()}
    dense = dict(table["dense"])
    for bench in benches:
        timed = {row["name"]: row for row in bench["variants"]}
        found = next((timed[name] for name in DENSE if name in timed), None)
        if found is not None:
            dense["latency"] = {**dense.get("latency", {}), device_label(bench): _told(found)}
        for row in rows.values():
            own = next((one for one in timed.values() if same_options(one, row)), None)
            if own is not None:
                row["latency"] = {**row.get("latency", {}), device_label(bench): _told(own)}
    return {**table, "rows": rows, "dense": dense}


def same_options(timed: Json, row: Json) -> bool:
    """Whether a row of a bench ran with the options of a row of a table or an ablation."""
    return bool(timed.get("options")) and timed["options"] == row.get("options")


def devices(table: Json) -> list[str]:
    """The devices that any row was timed on, in the order in which they were joined."""
    found: dict[str, None] = {}
    for row in (table["dense"], *table["rows"].values()):
        found |= dict.fromkeys(row.get("latency", {}))
    return list(found)


def _told(row: Json) -> dict[str, Any]:
    return {
        "name": row["name"],
        "median_ms": row["median_ms"],
        "spread": row["spread"],
        "speedup_vs_inductor": row["speedup_vs_inductor"],
        "peak_memory_bytes": row["peak_memory_bytes"],
    }
