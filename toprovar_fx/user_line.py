"""Warnings that point at the user's line, however many frames of this package and of torch lie between."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings

import torch

# `warnings.warn(skip_file_prefixes=...)` does this from Python 3.12 on. The last is code that torch.fx wrote.
_NOT_THE_USERS = (
    os.path.join(os.path.dirname(__file__), ""),
    os.path.join(os.path.dirname(torch.__file__), ""),
    contextlib.__file__,
    "<eval_with_key>",
)


def warn_at_user_line(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the innermost line that is neither this package's nor torch's nor contextlib's.

    Args:
        message: what to say.
        category: kind of warning.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    if frame is None:
        # At the end of the interpreter; Python itself says `sys:1` then.
        warnings.warn_explicit(message, category, "sys", 1)
        return
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__") or "<unknown>",
        frame.f_globals.setdefault("__warningregistry__", {}),
    )
