"""One trace per model for a whole test session: tracing costs a second, rewriting a tenth of it."""

from __future__ import annotations

from functools import cache

from .subjects import BUILDERS, SQUARE, Outcome, Traced, generate

NAMES = tuple(BUILDERS)


@cache
def traced(name: str) -> Traced:
    """The traced model; the first generation makes Dynamo trace it."""
    model = Traced(BUILDERS[name]())
    model({"preset": "lossless"})
    return model


@cache
def eager(name: str, images: int = 1) -> Outcome:
    """A generation of the untouched model."""
    return generate(traced(name).subject, traced(name).subject.model, images, SQUARE)
