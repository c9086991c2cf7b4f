"""Forms of regions that hand something on to the block behind them, made once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

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


_Form = TypeVar("_Form", NormForm, RowsForm)


def norm_form(region: Region) -> NormForm | None:
    """How a block of all tokens runs between blocks like it, or None."""

    def make() -> NormForm | None:
        found = with_carried_norm(region.graph)
        if found is None:
            return None
        block, norm = region.alike(found.graph, "norm carried on"), region.alike(found.norm, "its first norm")
        return NormForm(block, norm, found.modulations)

    return _once(region, "norm", make)


def rows_form(region: Region) -> RowsForm | None:
    """How a block that writes rows in place runs between blocks that keep the same tokens, or None."""

    def make() -> RowsForm | None:
        found = with_carried_rows(region.graph)
        if found is None:
            return None
        first, middle = region.alike(found.first, "its rows"), region.alike(found.middle, "rows carried on")
        return RowsForm(first, middle, region.alike(found.last, "last rows"), found.keep, found.modulations)

    return _once(region, "rows", make)


def _once(region: Region, name: str, make: Callable[[], _Form | None]) -> _Form | None:
    """A form of a region by its name, made where it is asked for first."""
    if name not in region.forms:
        region.forms[name] = make() or ()
    return cast("_Form | None", region.forms[name] or None)
