"""The profile: a small versioned JSON file of what dense generations showed, and of what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ProfileError, ScheduleError
from ..schedules import Schedule
from ..whole_files import replace_file
from .entries import EntryReader

FORMAT = "toprovar-fx profile"
VERSION = 1


@dataclass(frozen=True)
class Observed:
    """What n images of S scales showed; None where nothing was measured (scale 0 has one token).

    Attributes:
        images: n.
        depth: D of every image, None where rho never crossed.
        low_entropy_ratio: rho of every image at every scale, ``[n][S]``.
        attention_entropy_nats: mean over images and tokens, ``[S][layers]``.
        attention_entropy_std_nats: standard deviation over images of an image's mean, ``[S][layers]``.
        scope: R at every scale, mean over images, ``[S][layers]``; that of the representative scale decides.
        scope_std: standard deviation over images of the R that decides, ``[layers]``.
        agreement: share of the images whose own D and kept tokens are the profile's: "depth", "kept_tokens".
    """

    images: int
    depth: tuple[int | None, ...]
    low_entropy_ratio: tuple[tuple[float | None, ...], ...]
    attention_entropy_nats: tuple[tuple[float | None, ...], ...]
    attention_entropy_std_nats: tuple[tuple[float | None, ...], ...]
    scope: tuple[tuple[float | None, ...], ...]
    scope_std: tuple[float, ...]
    agreement: Mapping[str, float]


@dataclass(frozen=True)
class Profile:
    """Calibrated decisions of one model, schedule and criterion.

    Attributes:
        model: identity of the weights, see `identity.model_identity`.
        layers: number of layers of the model.
        schedule: the scales.
        settings: the options that the decisions follow from.
        depth: D, or None: no scale is pruned.
        scope: R of every layer.
        kept: kept tokens K of every layer, by pruned scale.
        observed: the measurements.
        torch, toprovar_fx: versions that measured; for the record, not compared.
    """

    model: str
    layers: int
    schedule: Schedule
    settings: Mapping[str, object]
    depth: int | None
    scope: tuple[float, ...]
    kept: Mapping[int, tuple[int, ...]]
    observed: Observed
    torch: str
    toprovar_fx: str

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        seen = self.observed
        return {
            "format": FORMAT,
            "version": VERSION,
            "made_with": {"toprovar_fx": self.toprovar_fx, "torch": self.torch},
            "model": {"sha256": self.model, "layers": self.layers},
            "schedule": [list(side) for side in self.schedule.sides],
            "settings": dict(self.settings),
            "decisions": {
                "depth": self.depth,
                "layer_scope": _rounded(self.scope, 6),
                "kept_tokens": {str(scale): list(counts) for scale, counts in self.kept.items()},
            },
            "observed": {
                "images": seen.images,
                "depth": list(seen.depth),
                "low_entropy_ratio": _rounded(seen.low_entropy_ratio),
                "attention_entropy_nats": _rounded(seen.attention_entropy_nats),
                "attention_entropy_std_nats": _rounded(seen.attention_entropy_std_nats),
                "layer_scope": _rounded(seen.scope),
                "layer_scope_std": _rounded(seen.scope_std),
                "agreement": {name: round(share, 4) for name, share in seen.agreement.items()},
            },
        }

    def save(self, path: str | Path) -> Path:
        """Write the profile to ``path``, whole or not at all.

        Raises:
            ProfileError: the file cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda partial: partial.write_text(self.text(), encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"cannot write profile '{path}': {error.strerror or error}") from error
        return path

    def text(self) -> str:
        """The file's text: one line per entry of the second level."""
        lines = []
        for name, value in self.to_json().items():
            if isinstance(value, Mapping):
                inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
                lines.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
            else:
                lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            ProfileError: no such file, no JSON, another format or version, or an entry that is missing or
                wrong.
        """
        if not isinstance(path, (str, PathLike)):
            raise ProfileError(f"profile={path!r}: expected the path of a file that toprovar calibrate wrote")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ProfileError(
                f"profile='{path}': cannot be read ({reason}), expected a file that toprovar calibrate wrote"
            ) from None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProfileError(
                f"profile='{path}': truncated or no JSON ({error}), expected a file that toprovar calibrate "
                "wrote"
            ) from None
        return cls.from_json(document, str(path))

    @classmethod
    def from_json(cls, document: object, name: str = "profile") -> Profile:
        """Check and convert what `to_json` gave.

        Args:
            document: the JSON value.
            name: what messages call it.

        Raises:
            ProfileError: see `load`.
        """
        read = EntryReader(name, document)
        if read.get("format", str, default=None) != FORMAT:
            raise ProfileError(f"profile='{name}': no profile, expected the entry format: {FORMAT!r}")
        version = read.get("version", int)
        if version != VERSION:
            raise ProfileError(
                f"profile='{name}': version {version}, expected version {VERSION}; calibrate the model again"
            )
        try:
            sides = read.rows("schedule", int, width=2)
            schedule = Schedule(tuple((side[0], side[1]) for side in sides))
        except (ScheduleError, TypeError) as error:
            raise ProfileError(f"profile='{name}': {error}") from None
        scales, layers = len(schedule), read.get("model.layers", int)
        depth = read.get("decisions.depth", int, optional=True)
        if depth is not None and not 0 <= depth < scales:
            raise ProfileError(f"profile='{name}': decisions.depth={depth}, expected 0 to {scales - 1}")
        images = read.get("observed.images", int)
        return cls(
            model=read.get("model.sha256", str),
            layers=layers,
            schedule=schedule,
            settings=read.get("settings", dict),
            depth=depth,
            scope=tuple(read.shares("decisions.layer_scope", layers)),
            kept=_kept(read, schedule, layers),
            observed=Observed(
                images=images,
                depth=tuple(read.row("observed.depth", int, images, optional=True)),
                low_entropy_ratio=read.table("observed.low_entropy_ratio", images, scales),
                attention_entropy_nats=read.table("observed.attention_entropy_nats", scales, layers),
                attention_entropy_std_nats=read.table("observed.attention_entropy_std_nats", scales, layers),
                scope=read.table("observed.layer_scope", scales, layers),
                scope_std=tuple(read.row("observed.layer_scope_std", float, layers)),
                agreement=read.get("observed.agreement", dict),
            ),
            torch=read.get("made_with.torch", str),
            toprovar_fx=read.get("made_with.toprovar_fx", str),
        )


def _kept(read: EntryReader, schedule: Schedule, layers: int) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for key in read.get("decisions.kept_tokens", dict):
        entry = f"decisions.kept_tokens.{key}"
        if not key.isdecimal() or int(key) >= len(schedule):
            raise ProfileError(
                f"profile='{read.name}': {entry}, expected a scale from 0 to {len(schedule) - 1}"
            )
        counts = read.row(entry, int, layers)
        most = schedule.tokens[int(key)]
        if not all(0 <= count <= most for count in counts):
            raise ProfileError(f"profile='{read.name}': {entry}={counts}, expected counts from 0 to {most}")
        found[int(key)] = tuple(counts)
    return found


def _rounded(values: Any, digits: int = 4) -> Any:
    if values is None or isinstance(values, float):
        return None if values is None else round(values, digits)
    return [_rounded(value, digits) for value in values]
