"""Errors of a backend as they reach whoever called the compiled model."""

from __future__ import annotations


def cause(error: BaseException) -> BaseException:
    """What a backend raised inside Dynamo."""
    return getattr(error, "inner_exception", error)
