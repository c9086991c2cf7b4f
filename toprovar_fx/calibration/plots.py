"""Pictures of a calibration: entropy and rho per scale, roles of the layers, entropy maps over the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .profile import Profile
from .replay import Place
from .statistics import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maps of four layers at the four largest scales.
_LAYERS, _SCALES = 4, 4
_INCH = 2.2


def write_plots(
    folder: Path, profile: Profile, maps: Mapping[Place, Tensor], image: NDArray[np.uint8]
) -> list[Path]:
    """Write all pictures into ``folder`` as PNG.

    Args:
        folder: is made when missing.
        profile: what was measured.
        maps: entropies ``[R, L]`` in nats of one image, by (scale, layer): `Calibration.maps`.
        image: that image, uint8 ``[H, W, 3]``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "entropy_and_rho": entropy_and_rho(profile),
        "layer_roles": layer_roles(profile),
        "entropy_maps": entropy_maps(profile, maps, image),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths


def entropy_and_rho(profile: Profile) -> Figure:
    """Mean entropy and low-entropy ratio per scale (the paper's Figure 8), with tau and D."""
    figure = _figure(7, 6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    scales = np.arange(len(profile.schedule))
    nats = _table(profile.observed.attention_entropy_nats)
    for layer in range(profile.layers):
        upper.plot(scales, nats[:, layer], color="tab:blue", alpha=0.25, linewidth=0.8)
    # Scale 0 has one token and no map.
    upper.plot(scales[1:], nats[1:].mean(1), color="tab:blue", marker="o", label="mean of the layers")
    upper.set_ylabel("attention entropy, nats")
    upper.legend(frameon=False)
    rho = _table(profile.observed.low_entropy_ratio)[:, 1:]
    mean, spread = rho.mean(0), rho.std(0)
    lower.plot(scales[1:], mean, color="tab:orange", marker="o", label="rho, mean of the images")
    lower.fill_between(scales[1:], mean - spread, mean + spread, color="tab:orange", alpha=0.2, linewidth=0)
    tau = profile.settings["tau"]
    if isinstance(tau, float):
        lower.axhline(tau, color="grey", linestyle="--", linewidth=1, label=f"tau = {tau:g}")
    if profile.depth is not None:
        lower.axvline(profile.depth, color="black", linestyle=":", label=f"D = {profile.depth}")
    lower.set_ylim(0, 1)
    lower.set_ylabel("share of tokens below the mean")
    lower.legend(frameon=False, loc="lower right")
    _name_scales(lower, profile)
    figure.suptitle(f"{profile.observed.images} images, dense")
    return figure


def layer_roles(profile: Profile) -> Figure:
    """R of every layer at every scale, and the share of tokens that the profile keeps."""
    figure = _figure(11, 0.3 * profile.layers + 2)
    left, right = figure.subplots(1, 2)
    roles = _table(profile.observed.scope).T
    shares = np.ones_like(roles)
    for scale, counts in profile.kept.items():
        shares[:, scale] = np.array(counts) / profile.schedule.tokens[scale]
    for axes, values, title in (
        (left, roles, "R: 0 global, 1 detail"),
        (right, shares, "share of tokens kept"),
    ):
        shown = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_title(title)
        axes.set_ylabel("layer")
        axes.yaxis.get_major_locator().set_params(integer=True)
        _name_scales(axes, profile)
        figure.colorbar(shown, ax=axes)
    fraction = profile.settings["representative_scale"]
    if isinstance(fraction, float):
        measured = max(0, round(fraction * len(profile.schedule)) - 1)
        left.axvline(measured, color="red", linestyle=":", linewidth=1)
    return figure


def entropy_maps(profile: Profile, maps: Mapping[Place, Tensor], image: NDArray[np.uint8]) -> Figure:
    """Entropies of some layers at the largest scales, laid over the image; each map has its own range."""
    scales = sorted({scale for scale, _ in maps})[-_SCALES:]
    layers = sorted({round(part) for part in np.linspace(0, profile.layers - 1, _LAYERS)})
    figure = _figure(_INCH * (len(scales) + 1), _INCH * len(layers))
    grid = figure.subplots(len(layers), len(scales) + 1, squeeze=False)
    extent = (0.0, float(image.shape[1]), float(image.shape[0]), 0.0)
    for row, layer in zip(grid, layers, strict=True):
        row[0].imshow(image)
        row[0].set_ylabel(f"layer {layer}")
        for axes, scale in zip(row[1:], scales, strict=True):
            nats = maps[scale, layer].float().mean(0).reshape(profile.schedule.sides[scale]).numpy()
            axes.imshow(image.mean(2), cmap="gray", extent=extent)
            axes.imshow(nats, cmap="magma", alpha=0.65, extent=extent, interpolation="nearest")
            height, width = profile.schedule.sides[scale]
            axes.set_title(f"{height}x{width}: {nats.min():.2f} to {nats.max():.2f} nats", fontsize=7)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def _figure(width: float, height: float) -> Figure:
    # Not through pyplot, which keeps figures and a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _name_scales(axes: Any, profile: Profile) -> None:
    sides = [f"{height}x{width}" for height, width in profile.schedule.sides]
    axes.set_xticks(range(len(sides)), sides, rotation=45, fontsize=8)
    axes.set_xlabel("scale")


def _table(rows: tuple[tuple[float | None, ...], ...]) -> Table:
    return np.array(rows, dtype=np.float64)
