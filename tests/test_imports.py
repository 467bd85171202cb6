"""Who imports whom: the core stays light, and the parts of the package stay apart."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import twins_dense

PACKAGE = Path(twins_dense.__file__).parent
OTHER_PROJECTS = ("timm", "mmengine", "mmcv", "mmseg", "mmpretrain", "detectron2", "torchvision")
HEAVY = (*OTHER_PROJECTS, "cv2", "matplotlib", "pycocotools", "safetensors")
# Modules beside the core that may need more than it.
APPLICATIONS = {"features", "export", "classification"}


def modules(root: Path = PACKAGE) -> dict[str, Path]:
    """Every module of a package, by its full name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(name: str, path: Path) -> set[str]:
    """Full names of what a module imports, anywhere in it, functions and type checking included.

    `from a import b` counts as `a` and `a.b`, because `b` may be a module.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "importlib.import_module", "__import__"):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield _called(node)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


MODULES = modules()
IMPORTS = {name: imported_by(name, path) for name, path in MODULES.items()}
CORE = sorted(
    name
    for name in MODULES
    if within(name, "twins_dense.weights")
    or (name.count(".") == 1 and MODULES[name].name != "__init__.py" and name.split(".")[1] not in APPLICATIONS)
    or name == "twins_dense"
)


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports."""
    return {module for module in MODULES if module in IMPORTS[name]} - {"twins_dense", name}


def test_importing_the_package_is_light() -> None:
    """In a process of its own, because the other tests have imported everything."""
    code = f"import sys, json, twins_dense; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_public_names_exist() -> None:
    assert sorted(twins_dense.__all__) == list(twins_dense.__all__)
    assert [name for name in twins_dense.__all__ if not hasattr(twins_dense, name)] == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("errors", set()),
        ("spec", {"errors"}),
        ("pyramid", {"errors"}),
        ("windows", {"errors"}),
        ("layers", {"errors", "spec", "windows"}),
    ],
)
def test_lower_layers(module: str, allowed: set[str]) -> None:
    assert own_imports(f"twins_dense.{module}") <= {f"twins_dense.{name}" for name in allowed}


@pytest.mark.parametrize("module", ["spec", "errors", "pyramid"])
def test_standard_library_only(module: str) -> None:
    outside = {name.split(".")[0] for name in IMPORTS[f"twins_dense.{module}"]} - {"twins_dense"}
    assert outside <= sys.stdlib_module_names


def test_weights_know_no_model() -> None:
    weights = [name for name in MODULES if within(name, "twins_dense.weights")]
    assert weights
    for name in weights:
        assert not own_imports(name) & {"twins_dense.backbone", "twins_dense.layers", "twins_dense.classifier"}, name


@pytest.mark.parametrize("name", CORE)
def test_core_imports_no_other_project(name: str) -> None:
    assert {module for module in IMPORTS[name] if within(module, *OTHER_PROJECTS)} == set()


def test_the_core_is_what_we_think() -> None:
    expected = {"twins_dense", *(f"twins_dense.{m}" for m in ("spec", "windows", "layers", "backbone", "classifier"))}
    assert {*expected, "twins_dense.weights.load"} <= set(CORE)
    assert not any(within(name, "twins_dense.integrations", "twins_dense.cli", "twins_dense.data") for name in CORE)


def test_integrations_do_not_import_each_other() -> None:
    shared = {"twins_dense.integrations.mmengine", "twins_dense.integrations.mmcv_ops"}  # parts, no integrations
    integrations = {name for name in MODULES if name.startswith("twins_dense.integrations.")} - shared
    for name in integrations:
        assert own_imports(name) & integrations == set(), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_package_imports_nothing_beside_it(name: str) -> None:
    assert {module for module in IMPORTS[name] if within(module, "tools", "configs", "tests")} == set()


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not within(name, "twins_dense.cli")))
def test_only_the_command_line_prints(name: str) -> None:
    assert {call for call in calls(MODULES[name]) if call in ("print", "click.echo", "click.secho", "echo")} == set()


def test_the_reference_is_independent() -> None:
    path = Path(__file__).parent / "reference" / "slow_twins.py"
    assert not {name for name in imported_by("reference.slow_twins", path) if within(name, "twins_dense", "torch.nn")}


def test_reading_of_imports(tmp_path: Path) -> None:
    """The rules above are worth as much as the reading: one file with every form of import, one call that prints."""
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from .a import f\n")
    (package / "a.py").write_text("import os.path\nfrom . import b\nfrom .sub import c as d\n")
    (package / "sub" / "__init__.py").write_text("from .. import a\nfrom .c import g\n")
    (package / "sub" / "c.py").write_text(
        "import importlib\ndef g():\n    from ..a import f\n    importlib.import_module('timm.models')\n    print(1)\n"
    )
    found = {name: imported_by(name, path) for name, path in modules(package).items()}
    assert found == {
        "pack": {"pack.a", "pack.a.f"},
        "pack.a": {"os.path", "pack", "pack.b", "pack.sub", "pack.sub.c"},
        "pack.sub": {"pack", "pack.a", "pack.sub.c", "pack.sub.c.g"},
        "pack.sub.c": {"importlib", "pack.a", "pack.a.f", "timm.models"},
    }
    assert "print" in set(calls(package / "sub" / "c.py"))
