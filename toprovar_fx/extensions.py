"""Registering token scores and passes of one's own; docs/extending.md has an example of each.

A registered name acts where `options` names it and nowhere else: `options={"score": "my_score"}`,
`options={"passes": ("my_pass",)}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from .criteria.score_registry import SCORES, Score, ScoreFunction
from .declaration import PASSES, Pass, always
from .errors import OptionError, nearest

if TYPE_CHECKING:
    from .options import Options
    from .passes.context import PassContext
    from .passes.step import PassResult, Step

PassFunction = Callable[["Step", "Options", "PassContext"], "PassResult"]


def register_score(
    name: str,
    *,
    keep: Literal["low", "high"] = "low",
    reads_entropy: bool = False,
    reads_hidden: bool = True,
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register the decorated function as a token score, for ``options={"score": name}``.

    The function takes a layer's input ``hidden [R, L, C]``, the attention entropies ``[R, L]`` in nats that
    `entropy_source` provides (None where none is known, or without ``reads_entropy``), and a
    `ScoreContext`. It returns a statistic ``[R, L]`` of finite values that are not negative, or None where it
    cannot tell, so that the layer runs whole. The option `normalise` scales it, eq. 6 turns it into K.

    Args:
        name: a Python identifier.
        keep: whether tokens of "low" or of "high" values are kept.
        reads_entropy: have attention entropies measured, which costs a tap in the layers they come from.
        reads_hidden: whether the values of `hidden` matter, not only its shape and device. Without them
            (NaN stands in their place) tokens are chosen before a scale runs, so that ``unit="step"`` runs it
            as one graph.

    Raises:
        OptionError: the name is taken or no identifier, `keep` is another word, or what is decorated is no
            function.
    """
    if keep not in ("low", "high"):
        raise OptionError(f"keep={keep!r}: expected 'low' or 'high'")

    def register(function: ScoreFunction) -> ScoreFunction:
        _check_callable("score", name, function)
        summary = _first_line(function.__doc__)
        SCORES.add(name, Score(name, function, keep, reads_entropy, summary, reads_hidden=reads_hidden))
        return function

    return register


def unregister_score(name: str) -> None:
    """Forget a registered score; models that were compiled with it keep it.

    Raises:
        OptionError: no score of this name was registered.
    """
    SCORES.remove(name)


def register_pass(
    name: str, *, after: str = "layer_skip", ensures: str = "", price: str = ""
) -> Callable[[PassFunction], PassFunction]:
    """Register the decorated function as a pass, for ``options={"passes": (name,)}``.

    The function takes the `Step`, the `Options` and a `PassContext` and returns a `PassResult`. It must not
    change the step that it is given; `toprovar_fx.passes.obligations` says what else is checked.

    Args:
        name: a Python identifier, other than the built-in passes'.
        after: the pass behind which it runs, a built-in or a registered one; of several passes behind the
            same one, the order of the option `passes` holds.
        ensures: what holds afterwards, for `explain`.
        price: what it costs, for `explain`.

    Raises:
        OptionError: the name is taken or no identifier, or there is no pass `after`.
    """
    from .passes.pipeline import BUILT_IN

    known = [*(built_in.name for built_in in BUILT_IN), *PASSES]
    if name in known[: len(BUILT_IN)]:
        raise OptionError(f"pass {name!r} is registered already: expected a name of its own")
    if after not in known:
        near = nearest(after, known)
        hint = f"; nearest valid: {near!r}" if near else ""
        raise OptionError(f"after={after!r}: expected one of {', '.join(map(repr, known))}{hint}")

    def register(function: PassFunction) -> PassFunction:
        _check_callable("pass", name, function)
        summary = _first_line(function.__doc__)
        when = f"`passes` names {name!r}"
        PASSES.add(name, Pass(name, function, (after,), summary, ensures, price, when, always))
        return function

    return register


def unregister_pass(name: str) -> None:
    """Forget a registered pass; models that were compiled with it keep it.

    Raises:
        OptionError: no pass of this name was registered.
    """
    PASSES.remove(name)


def _check_callable(kind: str, name: str, function: object) -> None:
    if not callable(function):
        raise OptionError(f"{kind} {name!r} is {function!r}: expected a function")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
