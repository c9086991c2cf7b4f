"""`toprovar eval --table`: every preset and policy, as it is and at equal budgets, over image seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import OptionError, OutputError
from ..loading.writing import write_whole
from ..reporting.parts import ROWS
from .loading import check_dtype, check_model, load
from .progress import progress
from .values import check_count, check_device, check_path, check_seconds
from .variants import at_budgets

if TYPE_CHECKING:
    from ..evaluation.frontier import Entry

NAME = "table"
# Image seeds of further runs, or of more prompts, would be those of other runs and of the split "tune".
MOST_RUNS, MOST_PROMPTS = 9, 100_000


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
    dtype: str | None = None,
) -> dict[str, Any]:
    """Measure, and write the table as JSON, Markdown and HTML into the folder ``out`` after every run.

    Every row is kept in the folder as soon as it is judged. In a folder that holds rows, those that are
    missing are measured; the table then has all of them.

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
        dtype: as for `load`.

    Raises:
        ToProVARError: an input is not valid, the folder holds rows of other settings, or cannot be written.
    """
    from ..evaluation.frontier import Frontier
    from ..evaluation.frontier_store import DENSE, RowStore
    from ..evaluation.study import judges

    check_path("--table", out)
    check_model(model)
    check_dtype(dtype)
    check_count("n", n, MOST_PROMPTS)
    check_count("runs", runs, MOST_RUNS)
    check_count("batch", batch)
    check_count("workers", workers)
    if n < 2:
        raise OptionError(f"--n is {n}, expected 2 or more: the Frechet distance compares sets of images")
    check_seconds(seconds)
    entries = entries_of(names, budgets)
    device = check_device(device)
    folder = table_folder(out)
    with progress("loading", doing=model):
        pipe = load(model, device, dtype)
    until = time.monotonic() + seconds if seconds else float("inf")
    settings = {
        "model": model,
        "n": n,
        "split": "test",
        "batch": min(batch, n),
        "device": device_name(device),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "toprovar_fx": __version__,
    }
    store = RowStore(folder / ROWS, settings)
    with judges(workers) as pool, torch.inference_mode():
        frontier = Frontier(pipe, entries, n, min(batch, n), pool, store)
        missing = [len(frontier.pending(index)) for index in range(runs)]
        with progress("measuring", sum(count + 1 for count in missing if count), doing=DENSE) as advance:
            for index in range(runs):
                whole = frontier.run(index, until, advance)
                result = {"command": "eval --table", **settings, **frontier.result()}
                if missing[index] or index == runs - 1:
                    write_forms(folder, result)
                if not whole:
                    break
    return {**result, "out": str(folder)}


def entries_of(names: Sequence[str], budgets: Sequence[float]) -> list[Entry]:
    """The rows of the table beside dense: every variant, and those in the form ``@NAME`` at every budget.

    Raises:
        OptionError: there is none, one prunes nothing, or one is not known.
    """
    from ..evaluation.frontier import Entry

    entries = []
    for variant in at_budgets(names, budgets):
        if variant.options is None:
            raise OptionError(
                f"'{variant.name}' prunes nothing: expected a preset or policy; dense is in the table anyway"
            )
        entries.append(Entry(variant.name, variant.method or variant.name, variant.budget, variant.options))
    if not entries:
        raise OptionError("--table: expected at least one --preset to compare with dense")
    return entries


def table_folder(out: str) -> Path:
    """Make the folder of a table, if need be.

    Raises:
        OutputError: it cannot be made, or holds a table whose rows are not there.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{out}': {error.strerror}") from error
    if (folder / f"{NAME}.json").exists() and not (folder / ROWS).exists():
        raise OutputError(f"'{out}' holds a table without its rows, expected another folder")
    return folder


def device_name(device: str) -> str:
    """The card's name, or ``cpu``."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def write_forms(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the table as JSON, Markdown, HTML and PNG into a folder that is there.

    Raises:
        OutputError: it cannot be written.
    """
    from ..reporting.frontier_page import as_markdown, plot
    from ..reporting.page import as_page
    from ..reporting.parts import Parts

    forms = {
        "json": (json.dumps(result, indent=1) + "\n").encode(),
        "md": as_markdown(result).encode(),
        "html": as_page(Parts(table=result)).encode(),
        "png": plot(result),
    }
    for suffix, content in forms.items():
        write_whole(folder / f"{NAME}.{suffix}", partial(Path.write_bytes, data=content))
