"""Measured rows on disk, a line of JSON each, so that what was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import OptionError, OutputError
from ..options import Options

FORMAT = "toprovar-fx rows"
DENSE = "dense"

Line = Mapping[str, Any]


class RowStore:
    """What was measured so far, by run and row name.

    Args:
        path: the file; is read where it is there. A last line that was cut off is removed.
        settings: what rows of one file must share.

    Raises:
        OptionError: the file was measured with other settings.
        OutputError: it cannot be read, is no such file, or another process writes to it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._lines: dict[tuple[int, str], Line] = {}
        try:
            self._file = path.open("a+", encoding="utf-8")
            weakref.finalize(self, self._file.close)
            _lock(self._file, path)
            if not self._read(settings):
                self._append({"format": FORMAT, "settings": dict(settings)})
        except OSError as error:
            raise OutputError(f"cannot use '{path}': {error.strerror}") from error

    def add(self, run: int, name: str, line: Line) -> None:
        """Keep a row, in memory and on disk.

        Raises:
            OutputError: the file cannot be written.
        """
        self._lines[run, name] = line
        self._append({"run": run, "name": name, **line})

    def get(self, run: int, name: str) -> Line | None:
        """The row, or None where it was not measured."""
        return self._lines.get((run, name))

    def rows(self, name: str) -> dict[int, Line]:
        """The row of every run that has it, in the order of the runs."""
        return {run: line for (run, other), line in sorted(self._lines.items()) if other == name}

    def names(self) -> list[str]:
        """Names of all rows, in the order in which they were first measured."""
        return list(dict.fromkeys(name for _, name in self._lines))

    def _append(self, line: Line) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write '{self._path}': {error.strerror}") from error

    def _read(self, settings: Mapping[str, Any]) -> bool:
        """Read the rows; False where not even the first line is whole, so that there is nothing to read."""
        try:
            self._file.seek(0)
            text = self._file.read()
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                self._file.truncate(len(whole.encode()))
            if not whole:
                return False
            head, *lines = map(json.loads, whole.splitlines())
            if head["format"] != FORMAT:
                raise KeyError("format")
            measured = dict(head["settings"])
            self._lines = {(line.pop("run"), line.pop("name")): line for line in lines}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(f"'{self._path}' holds no measured rows: {error}") from error
        for name, value in settings.items():
            if (known := measured.get(name)) != value:
                raise OptionError(
                    f"'{self._path.parent}' was measured with {name}={known}, not {value}: expected the "
                    "same, or another folder"
                )
        return True


def _lock(file: IO[str], path: Path) -> None:
    """Keep others from writing as long as the file is open: lines of two processes would mix.

    Raises:
        OutputError: somebody writes to it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"'{path}' is being written by another process, expected another folder") from None
    except OSError:  # a file system without locks
        return


def fingerprint(options: Mapping[str, object]) -> str:
    """A hash of options with all their defaults, and of the files that they name."""
    found = hashlib.sha256()
    for name, value in sorted(Options.parse(dict(options)).as_dict().items()):
        found.update(f"{name}={value!r};".encode())
        if isinstance(value, str) and Path(value).is_file():
            found.update(Path(value).read_bytes())
    return found.hexdigest()[:16]
