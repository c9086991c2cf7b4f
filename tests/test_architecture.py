"""Dependencies between packages point one way, as docs/design.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

from .checkout import ROOT

# A package imports only from those before it. Modules beside the packages join them, and are left out.
ORDER = (
    *("_torch_private", "criteria", "ops", "analysis", "cost", "lowering"),
    *("cache_policies", "policies", "runtime", "passes"),
    *("scenes", "models", "loading", "calibration", "adapters", "explanation"),
    *("evaluation", "reporting", "tuning", "training", "cli"),
)


def packages() -> list[Path]:
    folders = [path.parent for path in (ROOT / "toprovar_fx").glob("*/__init__.py")]
    return sorted({*folders, ROOT / "toprovar_fx" / "passes"})  # whether glob follows links or not


def running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from running(child)


def imported(file: Path) -> set[str]:
    """Other packages of this one that a module imports, at its top or later."""
    names: set[str] = set()
    for node in running(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            given = "." * node.level + (node.module or "")
            source = resolve_name(given, f"toprovar_fx.{file.parent.name}")
            names |= {f"{source}.{alias.name}" for alias in node.names}
    packages = {name.split(".")[1] for name in names if name.startswith("toprovar_fx.")}
    return packages & {*ORDER} - {file.parent.name}


@pytest.mark.parametrize("folder", packages(), ids=lambda folder: folder.name)
def test_packages_import_from_those_before_them(folder: Path) -> None:
    assert folder.name in ORDER, "say where the package stands"
    before = set(ORDER[: ORDER.index(folder.name)])
    wrong = {file.name: later for file in folder.glob("*.py") if (later := imported(file) - before)}
    assert not wrong
