"""`toprovar tune`: search the options with the best quality at a budget, and write them as a preset."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import OptionError
from . import arguments as take
from .frontier import device_name
from .loading import check_model, load
from .output import check_file
from .progress import progress
from .values import MODEL, check_count, check_device, check_seconds, check_seed, parse_speedup

MOST_TRIALS, MOST_PROMPTS = 10_000, 100_000


def tune_preset(
    target: take.Speedup,
    out: take.PresetOut = "tuned.json",
    trials: take.Trials = 30,
    n: take.Number = 300,
    test_n: take.TestNumber = 1200,
    batch: take.Batch = 50,
    seconds: take.Seconds = None,
    workers: take.Workers = 2,
    processes: take.Processes = 1,
    seed: take.Seed = 0,
    model: take.Model = MODEL,
    device: take.Device = None,
) -> dict[str, Any]:
    """Search, write the preset file ``out``, and return what `--json` prints.

    The points are kept in ``OUT.trials``, from which the same search goes on.

    Raises:
        ToProVARError: an input is not valid, or the file cannot be written.
    """
    from ..preset_files import SUFFIX, write_preset

    wanted = parse_speedup(target)
    check_model(model)
    limits = {"trials": (trials, MOST_TRIALS), "n": (n, MOST_PROMPTS), "test-n": (test_n, MOST_PROMPTS)}
    for name, (value, most) in limits.items():
        check_count(name, value, most)
    check_count("batch", batch)
    check_count("workers", workers)
    check_count("processes", processes)
    check_seconds(seconds)
    if n < 2 or test_n < 2:
        raise OptionError(f"--n is {n} and --test-n {test_n}, expected 2 or more: changes need an error")
    # Process i seeds the sampler, which takes 32 bits, with seed + i.
    check_seed(seed, processes, bits=32)
    if not out.endswith(SUFFIX):
        raise OptionError(f"--out '{out}': expected a file name that ends in .json")
    if not Path(out).resolve().parent.is_dir():
        raise OptionError(f"--out '{out}': expected a folder that exists")
    check_file(Path(out))
    device = check_device(device)

    from ..tuning import tune
    from ..tuning.search import Effort
    from ..tuning.trials import Journal

    with progress("loading", doing=model):
        pipe = load(model, device)
    effort = Effort(trials, n, test_n, min(batch, n), seconds or float("inf"), workers, seed, processes)
    settings: dict[str, Any] = {"model": model, "target": wanted, "n": n, "batch": min(batch, n)}
    settings |= {"device": device_name(device), "dtype": str(pipe.transformer.dtype).removeprefix("torch.")}
    settings |= {"torch": torch.__version__, "toprovar_fx": __version__}
    journal = Journal(Path(f"{out}.trials"), settings)
    with progress("tuning", trials, doing="dense images") as advance:
        tuned = tune(pipe, wanted, effort, advance, journal, partial(load, model, device))
    settings |= {"trials": len(tuned.trials), "test_n": test_n, "seed": seed}
    result = {**settings, "tune": dict(tuned.tune), "test": dict(tuned.test), "tried": tuned.trials}
    write_preset(out, tuned.options, result)
    return {"command": "tune", "out": out, "options": dict(tuned.options), **result}
