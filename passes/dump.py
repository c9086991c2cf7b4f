"""What the passes made of a graph, for people: numbered files on request, and artifacts for tlparse."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import fx

from .._torch_private import trace_artifact
from ..errors import OutputError
from .snapshot import Snapshots
from .step import PassRecord, Step

log = logging.getLogger(__name__)


class Dump:
    """Follows one graph through the passes.

    With `folder`, it writes `folder/graph_000/0000_dynamo.txt`, `0001_before_NAME.txt`, `0001_after_NAME.txt`
    and so on, every graph in the next free folder. Under `TORCH_TRACE` it emits the same texts, each once, as
    artifacts `toprovar_0000_dynamo`, `toprovar_0001_after_NAME`, and `toprovar_passes` in JSON.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | None, traced: fx.GraphModule) -> None:
        self._snapshots = Snapshots()
        self._folder = None if folder is None else _next_folder(Path(folder))
        self._count = 0
        self._write("0000_dynamo", traced)
        trace_artifact("toprovar_0000_dynamo", lambda: self._snapshots.text(traced))

    def step(self, name: str, before: Step | fx.GraphModule, after: Step) -> None:
        """Note what a pass was given and what it returned."""
        self._count += 1
        self._write(f"{self._count:04}_before_{name}", before)
        self._write(f"{self._count:04}_after_{name}", after)
        if after is not before:
            trace_artifact(f"toprovar_{self._count:04}_after_{name}", lambda: self._snapshots.text(after))

    def unsupported(self, reason: str) -> None:
        """Note why there is no step to rewrite."""
        self._put("0001_unsupported", reason + "\n")
        trace_artifact("toprovar_0001_unsupported", lambda: reason)

    def finish(self, records: Sequence[PassRecord]) -> None:
        """Note what all passes did."""
        trace_artifact("toprovar_passes", lambda: json.dumps([r.to_json() for r in records]), "json")
        if self._folder is not None:
            log.info("dumped %d passes to %s", len(records), self._folder)

    def _write(self, name: str, state: Step | fx.GraphModule) -> None:
        if self._folder is not None:
            self._put(name, self._snapshots.text(state))

    def _put(self, name: str, text: str) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{name}.txt"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise _refusal(path, error) from error


def _next_folder(root: Path) -> Path:
    """Make the next free `graph_000` under `root`; processes that dump at once do not meet."""
    number = 0
    while True:
        folder = root / f"graph_{number:03}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise _refusal(folder, FileExistsError(f"{folder} is a file")) from None
            number += 1
        except OSError as error:
            raise _refusal(root, error) from error


def _refusal(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"dump_dir: cannot write '{path}': {error.strerror or error}; expected a folder that can be written"
    )
