"""Options that name scales and layers, against a model that has so many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .option_checks import reject

if TYPE_CHECKING:
    from .options import Options


def resolve_index(name: str, index: int, count: int) -> int:
    """Turn an option's possibly negative scale or layer index into one from 0 to ``count - 1``.

    Raises:
        OptionError: The index lies outside ``-count .. count - 1``; the message calls it ``name``.
    """
    if not -count <= index < count:
        nearest = min(max(index, -count), count - 1)
        raise reject(name, index, f"an index from {-count} to {count - 1}", nearest)
    return index % count


def refuse_other_scales(options: Options, scales: int) -> None:
    """Refuse `keep` for a scale that a schedule of ``scales`` does not have.

    Counted from the end, a short schedule simply has fewer of them; a profile refuses others itself.

    Raises:
        OptionError: there is none of that number.
    """
    for scale, _ in options.keep or () if options.calibrated is None else ():
        if scale >= scales:
            expected = f"scales from {-scales} to {scales - 1}, which the schedule has"
            raise reject("keep", scale, expected, scales - 1)


def refuse_other_layers(options: Options, layers: int) -> None:
    """Refuse `keep` for a layer that a model of ``layers`` does not have; a profile does so itself.

    Raises:
        OptionError: there is none of that number, from the first on or from the last.
    """
    for scale, ratio in options.keep or () if options.calibrated is None else ():
        for layer, _ in ratio if isinstance(ratio, tuple) else ():
            if not -layers <= layer < layers:
                resolve_index(f"keep of scale {scale}, layer", layer, layers)


def refuse_other_sizes(options: Options, scales: int, layers: int) -> None:
    """Refuse every option that names a scale or a layer which a model does not have, before it runs.

    Args:
        options: the settings.
        scales: Number of scales S of its schedule.
        layers: Number of its layers.

    Raises:
        OptionError: there is none of that number.
    """
    refuse_other_scales(options, scales)
    refuse_other_layers(options, layers)
    options.layers_for_depth(layers)
    for name in ("scale_exit", "depth_scale"):
        if isinstance(wanted := getattr(options, name), int):
            resolve_index(name, wanted, scales)
    for name in ("min_scale", "guidance_until"):
        # From the end a short schedule has fewer of them, as for `keep`.
        if (wanted := getattr(options, name)) is not None and wanted >= scales:
            resolve_index(name, wanted, scales)
