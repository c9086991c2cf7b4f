"""Adapters for the unmodified code of other repositories, one family a file, for `toprovar_fx.accelerate`.

No adapter imports or edits the code that it adapts. It recognises a model by its attributes, replaces
attributes of that one instance, and puts them back on `restore()`.
"""

from .base import Adapter
from .infinity import InfinityAdapter
from .var import VARAdapter

FAMILIES: tuple[type[Adapter], ...] = (VARAdapter, InfinityAdapter)

__all__ = ["FAMILIES", "Adapter", "InfinityAdapter", "VARAdapter"]
