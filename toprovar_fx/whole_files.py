"""Files that are whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

# In front of the name of a file that is being written; such files are leftovers of a process that was killed.
PARTIAL = ".partial-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a path beside ``path``, and rename what it wrote once that has reached the disk.

    Whatever fails or interrupts it, what was at ``path`` stays, and nothing else is left.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
