"""What a policy may ask about the scale depth D of its generation."""

from __future__ import annotations

from typing import Protocol


class ScaleDepth(Protocol):
    """Finds D as the scales run, or holds the one that is set; `runtime/depth.py` does.

    Attributes:
        first: first scale at which D may fire, or D where it is set.
    """

    first: int

    @property
    def undecided(self) -> bool:
        """Whether D is still to be found."""

    def beyond(self, scale: int) -> bool:
        """Whether `scale` lies past D, so that its layers may be pruned."""

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run."""
