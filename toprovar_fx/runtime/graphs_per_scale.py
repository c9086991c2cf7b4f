"""Steps with a constant token count take a graph per scale: whether Dynamo will make them all.

After its recompile limit Dynamo runs a function eagerly, without an error. Such a scale writes and reads its
caches as if nothing had been pruned before it, so nothing may be. And whether the graph that runs is that of
the scale at all: a text encoder's, or a decoder's, has a constant count too.
"""

from __future__ import annotations

from .._torch_private import compilations_left
from ..analysis.reasons import Reason, Unsupported
from ..analysis.shapes import Size
from ..options import Options
from .generation import Generation, current_generation


def refuse_unfinished(length: Size, options: Options) -> None:
    """Refuse to prune the graph of one scale where later scales would find no compilation left.

    Outside a generation, where nobody knows how many scales follow, nothing is refused here;
    `Generation.refuse_eager_reads` sees it then.

    Args:
        length: the token count L of the graph that is being compiled.
        options: the settings.

    Raises:
        Unsupported: `RECOMPILE_LIMIT`.
    """
    running, left = current_generation(), compilations_left()
    if running is None or left is None or not length.is_Integer or not (options.prunes or options.compacts):
        return
    needed = len(running.schedule) - 1 - running.scale
    if left < needed:
        detail = f"{needed} scales follow this one, and Dynamo compiles its function {left} more times"
        raise Unsupported(Reason.RECOMPILE_LIMIT, None, detail)


def at_other_tokens(tokens: int | None) -> Generation | None:
    """The generation that runs, if its scale has another token count than a graph made for `tokens` alone.

    Args:
        tokens: the constant count of the graph; None where it is a symbol.
    """
    running = current_generation()
    if running is None or tokens is None or not 0 <= running.scale < len(running.schedule):
        return None
    return running if running.schedule.tokens[running.scale] != tokens else None
