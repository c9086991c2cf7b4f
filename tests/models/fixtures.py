"""One trace per model for a whole test session: tracing costs a second, rewriting a tenth of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .lasting import forget, outlive_resets
from .subjects import BUILDERS, SQUARE, Outcome, generate
from .traced import Traced

NAMES = tuple(BUILDERS)
_TRACED: dict[str, Traced] = {}
_EAGER: dict[tuple[str, int], Outcome] = {}


def traced(name: str) -> Traced:
    """The traced model; the first generation makes Dynamo trace it."""
    if name not in _TRACED:
        model = Traced(BUILDERS[name]())
        outlive_resets(model.forward)
        model({"preset": "lossless"})
        _TRACED[name] = model
    return _TRACED[name]


def eager(name: str, images: int = 1) -> Outcome:
    """A generation of the untouched model."""
    if (name, images) not in _EAGER:
        subject = traced(name).subject
        _EAGER[name, images] = generate(subject, subject.model, images, SQUARE)
    return _EAGER[name, images]


@contextmanager
def traced_anew() -> Iterator[None]:
    """The session's traces are put aside in the block, where models are traced from nothing."""
    aside = dict(_TRACED), dict(_EAGER)
    for made in (_TRACED, _EAGER):
        made.clear()
    torch.compiler.reset()
    try:
        yield
    finally:
        for model in _TRACED.values():
            forget(model.forward)
        for made, before in zip((_TRACED, _EAGER), aside, strict=True):
            made.clear()
            made.update(before)
        torch.compiler.reset()
