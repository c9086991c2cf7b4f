"""Forms of regions that hand something on to the block behind them, made once for each."""

from __future__ import annotations

from typing import NamedTuple

from .carried_norms import with_carried_norm
from .carried_rows import with_carried_rows
from .region import Region


class NormForm(NamedTuple):
    """The two graphs of `CarriedNorm`, and the positions of the modulations among the block's inputs."""

    block: Region
    norm: Region
    modulations: tuple[int, ...]


class RowsForm(NamedTuple):
    """The three graphs of `CarriedRows`, and positions among the block's inputs."""

    first: Region
    middle: Region
    last: Region
    keep: int
    modulations: tuple[int, ...]


def norm_form(region: Region) -> NormForm | None:
    """How a block of all tokens runs between blocks like it, or None."""
    if "norm" not in region.forms:
        found = with_carried_norm(region.graph)
        region.forms["norm"] = (
            ()
            if found is None
            else NormForm(
                region.alike(found.graph, "norm carried on"),
                region.alike(found.norm, "its first norm"),
                found.modulations,
            )
        )
    form = region.forms["norm"]
    return form if isinstance(form, NormForm) else None


def rows_form(region: Region) -> RowsForm | None:
    """How a block that writes rows in place runs between blocks that keep the same tokens, or None."""
    if "rows" not in region.forms:
        found = with_carried_rows(region.graph)
        region.forms["rows"] = (
            ()
            if found is None
            else RowsForm(
                region.alike(found.first, "its rows"),
                region.alike(found.middle, "rows carried on"),
                region.alike(found.last, "last rows"),
                found.keep,
                found.modulations,
            )
        )
    form = region.forms["rows"]
    return form if isinstance(form, RowsForm) else None
