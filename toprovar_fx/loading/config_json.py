"""Sizes and schedule of a pipeline as JSON, in the metadata of a file or in a folder's `pipeline.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import CheckpointError, ToProVARError
from ..models.bsq import BSQConfig
from ..models.configs import InfinityConfig
from ..models.vae import VAEConfig
from ..schedules import Schedule
from .files import one_line


def config_as_json(config: InfinityConfig, vae: VAEConfig, schedule: Schedule) -> dict[str, Any]:
    """Return what ``parse_config`` reads."""
    return {"transformer": asdict(config), "vae": asdict(vae), "schedule": asdict(schedule)}


def parse_config(content: Mapping[str, Any], source: str) -> tuple[InfinityConfig, VAEConfig, Schedule]:
    """Rebuild the configurations; JSON has no tuples.

    Args:
        content: with ``transformer``, ``vae`` and ``schedule``.
        source: what to call it in errors.

    Raises:
        CheckpointError: something is missing, unknown or of an impossible value.
    """
    try:
        schedule = content["schedule"]
        grid = schedule["grid"]
        return (
            InfinityConfig(**content["transformer"]),
            _vae_config(content["vae"]),
            Schedule(_pairs(schedule["sides"]), tuple(grid) if grid else None),
        )
    except KeyError as error:
        raise CheckpointError(f"configuration in {source}: expected an entry {error.args[0]!r}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, ToProVARError) as error:
        raise CheckpointError(f"configuration in {source} is not valid: {one_line(error)}") from None


def _vae_config(values: Mapping[str, Any]) -> VAEConfig:
    quantizer = values["quantizer"]
    if quantizer is not None:
        quantizer = BSQConfig(**{**quantizer, "schedule": _pairs(quantizer["schedule"])})
    multiples = {key: tuple(values[key]) for key in ("encoder_mult", "decoder_mult")}
    return VAEConfig(**{**values, **multiples, "quantizer": quantizer})


def _pairs(sides: Any) -> tuple[tuple[int, int], ...]:
    return tuple((height, width) for height, width in sides)
