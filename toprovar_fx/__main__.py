"""The command line: `toprovar` and `python -m toprovar_fx` are the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (default: those of the process) and return the exit code.

    0 is success, 1 an output that nobody reads any more, 2 an input that was refused with one line on
    standard error, 130 an interruption.
    """
    from .cli.failure import guarded

    return guarded(_application, sys.argv[1:] if arguments is None else list(arguments))


def _application(arguments: list[str]) -> int:
    # Imported here, so that a missing typer is reported like every other failure.
    from .cli.app import application

    return application(arguments)


if __name__ == "__main__":
    sys.exit(main())
