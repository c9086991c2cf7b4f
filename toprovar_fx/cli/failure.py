"""Turn what goes wrong into one line on standard error and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..errors import ToProVARError

REFUSED = 2
INTERRUPTED = 130
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

    Errors of this package, refused command line arguments, missing extras and paths that the system refuses
    are expected; everything else is a defect and keeps its traceback.
    """
    try:
        return command(arguments)
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
        if error.filename is None:
            raise
        return _tell(f"error: cannot use '{error.filename}': {error.strerror}", REFUSED)
    except Exception as error:
        # Typer's exceptions moved between modules over its versions, so they are known by what they offer.
        if type(error).__name__ == "Abort":
            return _tell("interrupted; finished files are intact", INTERRUPTED)
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        return _tell(f"error: {describe()}", REFUSED)


def _tell(message: str, code: int) -> int:
    print("toprovar:", " ".join(message.split()), file=sys.stderr)
    return code
