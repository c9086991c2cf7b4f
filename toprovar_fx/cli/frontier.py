"""`toprovar eval --table`: every preset and policy, as it is and at equal budgets, over image seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import OptionError, OutputError
from .loading import check_model, load
from .progress import progress
from .values import check_count, check_device
from .variants import Variant, parse_variant

NAME = "table"


def write_table(
    names: Sequence[str],
    *,
    out: str,
    budgets: Sequence[float] = (1.5, 2.0, 3.0, 4.0),
    n: int = 1200,
    runs: int = 3,
    batch: int = 50,
    seconds: float | None = None,
    workers: int = 2,
    model: str = "scenes",
    device: str | None = None,
) -> dict[str, Any]:
    """Measure, and write the table as JSON, Markdown and HTML into the folder ``out`` after every run.

    Args:
        names: variants as for `bench`; those in the form ``@NAME`` are measured at every budget too.
        out: a folder, made if need be.
        budgets: dense over pruned FLOPs.
        n: prompts.
        runs: image seeds per prompt.
        batch: images that are drawn together.
        seconds: begin no further row after this time; None for no limit.
        workers: judging processes.
        model: as for `load`.
        device: None for CUDA where there is one.

    Raises:
        ToProVARError: an input is not valid, or the folder cannot be written.
    """
    from ..evaluation.frontier import Frontier
    from ..evaluation.study import judges

    check_model(model)
    for name, value in {"n": n, "runs": runs, "batch": batch, "workers": workers}.items():
        check_count(name, value)
    entries = [entry for name in names for entry in _entries(name, budgets)]
    if not entries:
        raise OptionError("--table: expected at least one --preset to compare with dense")
    device = check_device(device)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{out}': {error.strerror}") from error
    with progress("loading", doing=model):
        pipe = load(model, device)
    until = time.monotonic() + seconds if seconds else float("inf")
    settings = {
        "command": "eval --table",
        "model": model,
        "device": _named(device),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "toprovar_fx": __version__,
        "batch": min(batch, n),
        "presets": " ".join(names),
        "budgets": ",".join(dict.fromkeys(f"{entry.budget:g}x" for entry in entries if entry.budget)),
    }
    with (
        judges(workers) as pool,
        torch.inference_mode(),
        progress("measuring", runs * (len(entries) + 1), doing="dense images") as advance,
    ):
        frontier = Frontier(pipe, entries, n, min(batch, n), pool)
        for index in range(runs):
            whole = frontier.run(index, until, advance)
            result = {**settings, **frontier.result()}
            write_forms(folder, result)
            if not whole:
                break
    return {**result, "out": str(folder)}


def _entries(name: str, budgets: Sequence[float]) -> list[Any]:
    from ..evaluation.frontier import Entry

    swept = name.startswith("@")
    variant: Variant = parse_variant(name.removeprefix("@"))
    if variant.options is None:
        raise OptionError(
            f"'{name}' prunes nothing: expected a preset or policy; dense is in the table anyway"
        )
    found = [Entry(variant.name, variant.name, None, variant.options)]
    if swept:
        for budget in budgets:
            solved = {**variant.options, "budget": f"{budget:g}x", "scale_exit": None}
            found.append(Entry(f"{variant.name} at {budget:g}x", variant.name, budget, solved))
    return found


def _named(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def write_forms(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the table as JSON, Markdown, HTML and PNG into a folder that is there.

    Raises:
        OutputError: it cannot be written.
    """
    from ..evaluation.frontier_page import as_markdown, plot
    from ..reporting.page import as_page
    from ..reporting.parts import Parts

    try:
        (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / f"{NAME}.md").write_text(as_markdown(result), encoding="utf-8")
        (folder / f"{NAME}.html").write_text(as_page(Parts(table=result)), encoding="utf-8")
        (folder / f"{NAME}.png").write_bytes(plot(result))
    except OSError as error:
        raise OutputError(f"cannot write into '{folder}': {error.strerror}") from error
