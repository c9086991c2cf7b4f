"""How Inductor reduces rows of channels on a GPU: in one pass over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

# Channels that the registers of one program hold; Inductor's own limit is 1024.
WIDEST_ROW = 4096


class RowsInOnePass(InductorChoices):
    """Inductor's choices, but norms over up to `WIDEST_ROW` channels keep their row in registers.

    Inductor loops over rows of more than 1024 channels, twice for a norm: once for its statistics, once to
    apply them. At the few rows of the early scales each pass waits for memory anew.
    """

    @staticmethod
    def uuid() -> str:
        """Tells compilations with these choices from others in Inductor's disk cache."""
        return f"toprovar-rows-in-one-pass-{WIDEST_ROW}"

    @staticmethod
    def should_use_persistent_reduction(features, cooperative_reduction: bool) -> bool:  # type: ignore[no-untyped-def]
        """As Inductor's, with the higher limit where the channels are next to each other in memory."""
        if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
            return True
        if cooperative_reduction or not config.triton.persistent_reductions:
            return False
        # Rows that are gathered by an index have no hint on torch 2.11.
        rows = features.get_reduction_hint() in (ReductionHint.INNER, ReductionHint.DEFAULT)
        return rows and V.graph.sizevars.statically_known_leq(features.reduction_numel, WIDEST_ROW)


@contextmanager
def rows_in_one_pass() -> Iterator[dict[str, object]]:
    """Compile with these choices; gives the settings to compile with. A user's own choices are left alone."""
    if config.inductor_choices_class is not None:
        yield {}
        return
    # Inductor reads the setting once per thread; it is given for the key of its disk cache.
    with V.set_choices_handler(RowsInOnePass()):
        yield {"inductor_choices_class": RowsInOnePass}
