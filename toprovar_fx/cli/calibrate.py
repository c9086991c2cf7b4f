"""`toprovar calibrate`: decide once for a model what is otherwise decided for every image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.profile import Profile
from ..errors import PromptError
from ..option_sizes import refuse_other_sizes
from ..options import Options
from . import arguments as take
from .loading import check_model, features, load
from .output import check_file, check_writable, write_file
from .progress import progress
from .values import MODEL, check_count, check_device, check_path, check_prompts, check_seed, parse_options

if TYPE_CHECKING:
    from ..pipeline import PipelineOutput

PRESET = "criterion"
OUT = "profile.json"


def calibrate(
    prompts: take.PromptFile,
    model: take.CalibratedModel = MODEL,
    n: take.FirstPrompts = None,
    out: take.ProfileOut = OUT,
    preset: take.Criterion = None,
    options: take.Settings = None,
    seed: take.Seed = 0,
    batch: take.Batch = 1,
    device: take.Device = None,
    plots: take.Plots = None,
) -> tuple[Profile, dict[str, Any]]:
    """Draw the prompts of a file dense, measure every layer's entropies, and write the profile.

    Args:
        prompts: a text file with one prompt a line; empty lines do not count.
        model: a shipped model's name, the path of a pipeline file, or `untrained:NAME`.
        n: use the first n prompts; None is all.
        out: file of the profile.
        preset: of the criterion; None is `criterion`.
        options: `key=value` settings on top of the preset.
        seed: of the first image; image i uses ``seed + i``.
        batch: images that are drawn together.
        device: None is CUDA where there is one.
        plots: a folder for pictures, or None.

    Returns:
        The profile, and what `--json` prints.

    Raises:
        ToProVARError: an input is not valid.
    """
    from ..calibration.calibrate import draw
    from ..calibration.calibration import Calibration
    from ..calibration.plots import write_plots

    check_model(model)
    texts = read_prompts(Path(prompts), n)
    check_prompts(texts, model)
    check_seed(seed, len(texts))
    check_count("batch", batch)
    chosen = Options.parse(parse_options(preset or PRESET, options or ()))
    calibration = Calibration(chosen)
    check_path("--out", out)
    check_path("--plots", plots)
    target = Path(out)
    check_file(target)
    if plots is not None:
        _check_matplotlib()
        check_writable(Path(plots))
    device = check_device(device)
    with progress("loading", doing=model):
        pipe = load(model, device)
    refuse_other_sizes(chosen, len(pipe.schedule), pipe.transformer.config.depth)
    first: list[NDArray[np.uint8]] = []
    with progress("calibrating", -(-len(texts) // batch), doing="compiling and drawing") as advance:

        def drawn(output: PipelineOutput) -> None:
            if not first:
                first.append(output.images[0])
            advance(f"image {calibration.images} of {len(texts)}")

        draw(calibration, pipe, features(pipe, texts, model), seed=seed, batch=batch, on_batch=drawn)
    profile = calibration.profile()
    write_file(target, lambda file: file.write(profile.text().encode()))
    pictures = [] if plots is None else write_plots(Path(plots), profile, calibration.maps, first[0])
    result = {
        "command": "calibrate",
        "model": model,
        "device": device,
        "prompts": len(texts),
        "seed": seed,
        "profile": str(target),
        **{key: profile.to_json()[key] for key in ("schedule", "decisions")},
        "agreement": dict(profile.observed.agreement),
        "plots": [str(path) for path in pictures],
    }
    return profile, result


def read_prompts(path: Path, n: int | None) -> list[str]:
    """Read one prompt a line.

    Raises:
        OptionError: ``n`` is below 1 or there are fewer prompts.
        PromptError: the file cannot be read or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise PromptError(
            f"cannot read prompts from '{path}': {reason}, expected a text file with one prompt a line"
        ) from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise PromptError(f"'{path}' holds no prompt, expected one a line")
    if n is not None:
        check_count("n", n, len(found))
    return found[:n]


def _check_matplotlib() -> None:
    """Fail before the work, not after it."""
    import matplotlib.figure  # noqa: F401
