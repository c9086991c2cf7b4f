"""What must hold for the whole repository: packaging, the `passes` link, no names of machines, file sizes."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .checkout import ROOT, repository_files

if sys.version_info >= (3, 11):
    import tomllib
else:  # the only user of toml on 3.10; mypy brings tomli there
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = {"torch", "numpy", "functorch", "sympy", "toprovar_fx"}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".cfg", ""}


def sources() -> list[Path]:
    """Python files of the package, each once (`toprovar_fx/passes` is a link to `passes`)."""
    return sorted(
        {path.resolve() for folder in ("toprovar_fx", "passes") for path in (ROOT / folder).rglob("*.py")}
    )


def test_every_package_folder_is_listed() -> None:
    folders = [path.parent for path in (ROOT / "toprovar_fx").rglob("__init__.py")]
    folders.append(ROOT / "toprovar_fx" / "passes")  # rglob does not follow links
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_version_is_written_once() -> None:
    import toprovar_fx

    assert toprovar_fx.__version__ == PROJECT["project"]["version"]


def test_passes_are_a_committed_link() -> None:
    link = ROOT / "toprovar_fx" / "passes"
    assert link.is_symlink(), "the checkout needs core.symlinks"
    assert str(link.readlink()) == "../passes"


def test_passes_are_imported_under_the_package() -> None:
    import toprovar_fx.passes

    assert toprovar_fx.passes.__name__ == "toprovar_fx.passes"
    for path in (ROOT / "passes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module != "passes", f"{path.name} imports the global name"


def test_the_backend_is_found_by_name() -> None:
    import torch

    assert "toprovar" in torch._dynamo.list_backends(exclude_tags=())


def test_core_imports_need_torch_alone() -> None:
    """Importing the package must not import an extra; those are imported inside functions."""
    script = (
        "import sys, toprovar_fx, toprovar_fx.backend, toprovar_fx.pipeline\n"
        "extras = ['PIL', 'matplotlib', 'rich', 'safetensors', 'scipy', 'skimage', 'transformers', 'typer',\n"
        "          'toprovar_fx.ops.triton_launch', 'toprovar_fx.ops.gluon_attention',\n"
        "          'toprovar_fx.ops.triton_rotation', 'toprovar_fx.ops.triton_merge',\n"
        "          'toprovar_fx.ops.triton_select', 'toprovar_fx.ops.triton_sigma',\n"
        "          'toprovar_fx.ops.attention_launch', 'toprovar_fx.ops.triton_few_keys',\n"
        "          'toprovar_fx.ops.triton_add_norm', 'toprovar_fx.ops.triton_chain',\n"
        "          'toprovar_fx.ops.gluon_product', 'toprovar_fx.ops.gluon_barriers',\n"
        "          'toprovar_fx.ops.gluon_softmax', 'toprovar_fx.ops.gluon_dealt_attention',\n"
        "          'toprovar_fx.ops.triton_rotated_attention']\n"
        "print([name for name in extras if name in sys.modules])"
    )
    assert printed_by(script) == "[]"


def test_importing_the_package_does_not_import_the_compilers() -> None:
    """Dynamo and Inductor take a second to import, which torch leaves to the first compilation."""
    script = (
        "import sys, torch, torch.fx.experimental.symbolic_shapes, torch.utils.flop_counter\n"
        "before = set(sys.modules)\n"
        "import toprovar_fx, toprovar_fx.backend\n"
        "print(sorted(name for name in set(sys.modules) - before\n"
        "             if name.startswith(('torch._dynamo', 'torch._inductor', 'torch._functorch'))))"
    )
    assert printed_by(script) == "[]"


def printed_by(script: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


# Typer builds its commands from signatures, so these import it at the top; commands alone import them.
TYPER_MODULES = {"app.py", "arguments.py"}
# Kernels are functions that Triton decorates; their modules are imported where a kernel is launched.
TRITON_MODULES = {
    *("triton_attention.py", "triton_launch.py", "gluon_attention.py", "triton_rotation.py"),
    *("triton_merge.py", "triton_select.py", "triton_sigma.py", "attention_launch.py"),
    *("triton_add_norm.py", "triton_chain.py", "gluon_product.py"),
    *("gluon_barriers.py", "gluon_softmax.py", "gluon_dealt_attention.py"),
    "triton_rotated_attention.py",
    "triton_few_keys.py",
}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_no_extra_at_the_top(path: Path) -> None:
    if path.parent.name == "cli" and path.name in TYPER_MODULES:
        return
    if path.parent.name == "ops" and path.name in TRITON_MODULES:
        return
    outside = top_level_imports(path) - CORE - set(sys.stdlib_module_names)
    assert not outside, f"import {sorted(outside)} inside the function that needs it"


def dotted(node: ast.AST) -> list[str]:
    """Names of `a.b.c`, or nothing where it does not start with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


def private_names(path: Path) -> list[str]:
    """Private interfaces of torch, and private attributes of other objects, that a file names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        chains: list[list[str]] = []
        if isinstance(node, ast.Import):
            chains = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            chains = [[*(node.module or "").split("."), alias.name] for alias in node.names]
        elif isinstance(node, ast.Attribute):
            chains = [dotted(node)]
        elif isinstance(node, ast.Call) and dotted(node.func)[-1:] in (["getattr"], ["hasattr"]):
            chains = [["?", str(name.value)] for name in node.args[1:2] if isinstance(name, ast.Constant)]
        for chain in chains:
            owned = chain[:1] in ([], ["self"], ["cls"]) or chain[:2] == ["torch", "ops"]
            private = any(re.match(r"_[a-z]", part) for part in chain[1:])
            if private and not owned and chain[-1] not in PUBLIC_IN_SPITE_OF_ITS_NAME:
                found.append(f"{path.name}:{node.lineno} {'.'.join(chain)}")
    return found


# `torch._check` is documented; `_replace` is how a named tuple is changed.
PUBLIC_IN_SPITE_OF_ITS_NAME = {"_check", "_replace"}


def test_private_interfaces_of_torch_have_one_home() -> None:
    home = ROOT / "toprovar_fx" / "_torch_private"
    outside = [name for path in sources() if home not in path.parents for name in private_names(path)]
    assert not outside, "put it into toprovar_fx/_torch_private"
    assert any(private_names(path) for path in home.glob("*.py"))


def test_no_machine_is_named() -> None:
    pattern = re.compile(r"/(work|root)/|/home/\w|extra-index-url|index-url|pytorch-mirror")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in repository_files()
        if path.suffix in TEXT and path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_shipped_weights_fit() -> None:
    folder = ROOT / "toprovar_fx" / "weights"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 48 * 2**20, f"{size / 2**20:.1f} MiB"


@pytest.mark.slow
def test_wheel_holds_the_passes_as_files(tmp_path: Path) -> None:
    """An installed wheel has `toprovar_fx/passes/*.py` and no top-level `passes`."""
    source = tmp_path / "source"  # a copy: setuptools builds in place and would reuse an old build folder
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("toprovar_fx", "passes"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"toprovar_fx/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    expected |= {
        f"toprovar_fx/weights/{path.name}" for path in (ROOT / "toprovar_fx" / "weights").glob("*.*")
    }
    assert expected <= names
    assert not [name for name in names if name.startswith("passes/")]
