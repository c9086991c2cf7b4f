"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

# In front of the name of a file that is being written; such files are leftovers of a process that was killed.
PARTIAL = ".partial-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a path beside ``path``, and rename what it wrote once that has reached the disk.

    Whatever fails or interrupts it, what was at ``path`` stays, and nothing else is left. Of a symbolic link
    the file that it leads to is replaced.

    Raises:
        OSError: the file cannot be written, or there is a folder or a device in its place.
    """
    path = Path(os.path.realpath(path))
    refuse_special(path)
    partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_special(path: Path) -> None:
    """Refuse what a rename would put a file in place of, such as ``/dev/null``.

    Raises:
        OSError: there is something at ``path`` that is no file.
    """
    if path.exists() and not path.is_file():
        what = "it is a folder" if path.is_dir() else "it is a device or pipe"
        raise OSError(errno.EEXIST, f"{what}, expected a file", str(path))
