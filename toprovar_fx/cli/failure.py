"""Turn what goes wrong into one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from ..errors import ToProVARError

REFUSED = 2
INTERRUPTED = 130
UNREAD = 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Import name -> what it is for; all of them come with the extra `demo`.
EXTRAS = {
    "typer": "the command line",
    "rich": "tables and progress bars",
    "PIL": "writing images",
    "matplotlib": "drawing plots",
    "safetensors": "reading weights",
    "scipy": "scoring images",
    "skimage": "scoring images",
}


def guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command(arguments)``, print an expected failure as one line, and return the exit code.

    Errors of this package, refused command line arguments, missing extras, paths that the system refuses, a
    full disk and a standard output that nobody reads are expected; everything else is a defect and keeps its
    traceback.
    """
    try:
        code = command(arguments)
        if code == INTERRUPTED:  # newer versions of typer return it instead of raising
            return _tell("interrupted; finished files are intact", INTERRUPTED)
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _tell("interrupted; finished files are intact", INTERRUPTED)
    except ToProVARError as error:
        return _tell(f"error: {error}", REFUSED)
    except ModuleNotFoundError as error:
        extra = (error.name or "").partition(".")[0]
        if extra not in EXTRAS:
            raise
        return _tell(
            f"error: {EXTRAS[extra]} needs {extra}; install it with: pip install 'toprovar-fx[demo]'",
            REFUSED,
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read standard output went away, as `| head` does; typer exits with 1 as well.
            _drop_stdout()
            return UNREAD
        if error.filename is not None:
            return _tell(f"error: cannot use '{error.filename}': {error.strerror}", REFUSED)
        if error.errno not in NO_ROOM:
            raise
        _drop_stdout()
        return _tell(f"error: cannot write: {error.strerror}", REFUSED)
    except Exception as error:
        # Dynamo wraps what a backend raises.
        inner = getattr(error, "inner_exception", None)
        if isinstance(inner, ToProVARError):
            return _tell(f"error: {inner}", REFUSED)
        # Typer's exceptions moved between modules over its versions, so they are known by what they offer.
        if type(error).__name__ == "Abort":
            return _tell("interrupted; finished files are intact", INTERRUPTED)
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        return _tell(f"error: {describe()}", REFUSED)


def _tell(message: str, code: int) -> int:
    if sys.stderr is not None:  # else it would go to standard output
        with suppress(OSError):
            print("toprovar:", " ".join(message.split()), file=sys.stderr)
    return code


def _drop_stdout() -> None:
    """What is left for standard output goes nowhere, so that Python says nothing about it when it ends."""
    own = sys.__stdout__
    if own is not None and sys.stdout is own:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, own.fileno())
        os.close(sink)
