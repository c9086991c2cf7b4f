"""How a profile becomes options, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ProfileError
from ..schedules import Schedule, Side
from .profile import Profile

# Settings that the decisions follow from: a profile holds for no other values of them.
BOUND = (
    "policy",
    "prune_scales",
    "prune_layers",
    "prune_tokens",
    "depth",
    "depth_scale",
    "tau",
    "depth_compare",
    "depth_layers",
    "min_scale",
    "prune_from",
    "keep",
    "budget",
    "layer_scope",
    "scope_values",
    "scope_of",
    "scope_centre",
    "beta",
    "representative_scale",
    "protected_layers_first",
    "protected_layers_last",
    "layer_skip_below",
    "score",
    "keep_low",
    "normalise",
    "alpha_min",
    "alpha_max",
    "min_keep",
    "buckets",
    "entropy_source",
    "ranking_depth",
    "entropy_keys",
    "cfg_rows",
    "batch_rule",
)
# Settings that a profile brings along and that may be overridden: they do not change what was measured.
CARRIED = ("scale_exit", "restore", "pruned_kv", "sampling")


@dataclass(frozen=True)
class Calibrated:
    """What a profile is of, kept by the options that use it.

    Attributes:
        name: path of the profile.
        model, layers, sides: identity of the weights, number of layers and scales that it was measured with.
        digest: SHA-256 of the file, empty without one.
    """

    name: str
    model: str
    layers: int
    sides: tuple[Side, ...]
    digest: str = field(default="", compare=False)

    def refuse_stale(self) -> None:
        """Refuse to run where the file has changed since the model was compiled with it.

        Dynamo finds compiled code by the options' text, so it cannot see such a change.

        Raises:
            ProfileError: the file holds something else now.
        """
        now = file_digest(self.name)
        if now and self.digest and now != self.digest:
            raise ProfileError(
                f"profile='{self.name}': the file has changed since the model was compiled with it; expected "
                "a call of torch.compiler.reset() in between, or another file"
            )

    def refuse_other(self, model: str, layers: int, schedule: Schedule) -> None:
        """Refuse to decide for anything else than was measured.

        Raises:
            ProfileError: another model or schedule.
        """
        if schedule.sides != self.sides:
            raise ProfileError(
                f"profile='{self.name}': measured with the schedule {_sides(self.sides)}, but this "
                f"generation's is {_sides(schedule.sides)}; expected the same, calibrate again"
            )
        if (model, layers) != (self.model, self.layers):
            raise ProfileError(
                f"profile='{self.name}': measured on the model {self.model[:12]} of {self.layers} layers, "
                f"but this model is {model[:12]} of {layers} layers; expected the same weights, calibrate "
                "again"
            )


def option_values(profile: Profile, name: str) -> tuple[dict[str, object], dict[str, object], Calibrated]:
    """Return the options that a profile stands for.

    Args:
        profile: the profile.
        name: what messages call it.

    Returns:
        Values that have to be these; values that may be overridden; what the profile is of.

    Raises:
        ProfileError: a setting is missing.
    """
    missing = [setting for setting in (*BOUND, *CARRIED) if setting not in profile.settings]
    if missing:
        raise ProfileError(f"profile='{name}': settings.{missing[0]} is missing, calibrate again")
    bound = {setting: profile.settings[setting] for setting in BOUND}
    carried = {setting: profile.settings[setting] for setting in CARRIED}
    tokens = profile.schedule.tokens
    bound["keep"] = {
        scale: {layer: count / tokens[scale] for layer, count in enumerate(counts)}
        for scale, counts in profile.kept.items()
    } or None
    bound["depth"] = "off" if profile.depth is None else "fixed"
    bound["depth_scale"] = profile.depth
    if bound["prune_layers"] and bound["layer_scope"] == "online":
        bound["layer_scope"], bound["scope_values"] = "fixed", profile.scope
    if profile.depth is None and carried["scale_exit"] == "depth":
        carried["scale_exit"] = None
    return (
        bound,
        carried,
        Calibrated(name, profile.model, profile.layers, profile.schedule.sides, file_digest(name)),
    )


def file_digest(path: str) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _sides(sides: tuple[Side, ...]) -> str:
    return " ".join(f"{height}x{width}" for height, width in sides)
