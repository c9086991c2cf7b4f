"""Exceptions of the package: one base class, one line per message.

Every message says which value was wrong, what was expected and, where there is one, the nearest valid choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ToProVARError(ValueError):
    """Base class: catching it catches every error that a caller's input can cause."""


class OptionError(ToProVARError):
    """A backend option has an unknown name, or a value of the wrong type or out of range."""


class ProfileError(OptionError):
    """A calibration profile cannot be read, or is not of this model, schedule or setting."""


class PromptError(ToProVARError):
    """A prompt is empty, too long or holds a word the text encoder does not know."""


class CheckpointError(ToProVARError):
    """A checkpoint is missing, unreadable or does not fit the model."""


class ScheduleError(ToProVARError):
    """A scale schedule does not exist or does not fit the model."""


class SeedError(ToProVARError):
    """A seed is not an integer in ``0 .. 2**63 - 1``, or their number differs from the number of prompts."""


class OutputError(ToProVARError):
    """An output path or format cannot be written."""


class GraphError(ToProVARError):
    """A captured graph lacks a structure that the requested rewrite needs."""


class ExtensionError(ToProVARError):
    """A registered score or pass returned something else than it has to."""


class AdapterError(ToProVARError):
    """A model lacks a structure that its adapter relies on, or is called in a way that it cannot follow."""


def nearest(word: object, choices: Iterable[object]) -> str | None:
    """Return the choice that looks most like ``word``, compared without case; None if none is similar."""
    by_folded = {str(choice).casefold(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(str(word).casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None
