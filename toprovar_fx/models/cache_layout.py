"""Where the slots of a layer's cache lie in memory, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import OptionError, nearest

CacheLayout = Literal["plain", "token_major", "shared"]
"""How a cache ``[R, H, slots, D]`` lies in memory.

- ``plain``: in that order.
- ``token_major``: as ``[R, slots, H, D]``, seen through a transposed view.
- ``shared``: as ``token_major``, and on CUDA the layers share the memory of the last scale's slots.
"""

# Of every card so far; what a cache takes is told before there is a device to ask.
USUAL_PAGE_BYTES = 2 * 2**20


def checked_layout(name: str) -> CacheLayout:
    """Return ``name`` if it is a layout.

    Raises:
        OptionError: it is not.
    """
    for known in get_args(CacheLayout):
        if name == known:
            return known  # type: ignore[no-any-return]
    hint = nearest(name, get_args(CacheLayout))
    known = ", ".join(get_args(CacheLayout))
    raise OptionError(
        f"cache layout {name!r}: expected one of {known}" + (f"; did you mean {hint!r}?" if hint else "")
    )


@dataclass(frozen=True)
class TokenMajor:
    """Keys or values of one layer, ``[R, slots, H, D]`` in whole pages per batch row.

    A batch row is one stretch of addresses: first the pages that hold a slot below ``kept_slots``, which are
    the layer's own, then the others, which layers may share. A page that holds slots of both is the layer's.
    Rows are padded to whole slots as well: a stride that does not follow from the shape would be a size of
    its own, which no input of a graph tells once schedules, and so slots, differ.

    Attributes:
        rows: R.
        heads: H.
        slots: per batch row, at least.
        width: D.
        itemsize: bytes of a number.
        kept_slots: slots that a later scale reads.
        page_bytes: what memory is mapped in; a batch row takes a multiple of it.
    """

    rows: int
    heads: int
    slots: int
    width: int
    itemsize: int
    kept_slots: int
    page_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes of a slot."""
        return self.heads * self.width * self.itemsize

    @property
    def own_bytes(self) -> int:
        """Bytes of a batch row that belong to the layer."""
        return _rounded_up(self.kept_slots * self.token_bytes, self.page_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a batch row, from its first address to that of the next."""
        whole = math.lcm(self.page_bytes, self.token_bytes)
        return _rounded_up(self.slots * self.token_bytes, whole)

    @property
    def tail_bytes(self) -> int:
        """Bytes of a batch row that layers may share."""
        return self.row_bytes - self.own_bytes

    @property
    def tensor_bytes(self) -> int:
        """Addresses that a tensor spans."""
        return self.rows * self.row_bytes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape that the model sees, ``[R, H, padded slots, D]``."""
        return self.rows, self.heads, self.row_bytes // self.token_bytes, self.width

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """In numbers, for ``shape``."""
        return self.row_bytes // self.itemsize, self.width, self.heads * self.width, 1

    def memory_bytes(self, layers: int) -> int:
        """Memory of the keys and values of so many layers that share their tails."""
        return 2 * self.rows * (layers * self.own_bytes + self.tail_bytes)


def _rounded_up(size: int, whole: int) -> int:
    return -(-size // whole) * whole
