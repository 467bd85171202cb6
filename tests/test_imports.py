"""Import rules: the core stays light, and the parts of the package stay separate."""

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
HEAVY = ("torch", "numpy", "PIL", *OTHER_PROJECTS, "cv2", "matplotlib", "pycocotools", "safetensors", "zarr", "pyarrow")

BASE = {"errors", "atomic", "distributed", "seeds", "stopping"}
CORE_PARTS = {*BASE, "models", "weights", "factory"}
# For each part of the package (a folder or a module at the top level), the parts that it may import.
ARROWS = {
    "errors": set(),
    "atomic": set(),
    "distributed": set(),
    "seeds": set(),
    "stopping": set(),
    "models": BASE,
    "weights": {*BASE, "models"},
    "factory": {*BASE, "models", "weights"},
    "data": BASE,
    "imagenet": {*BASE, "weights", "data"},
    "evaluation": {*BASE, "data"},
    "frameworks": {*CORE_PARTS, "data", "evaluation", "deploy"},
    "inference": {*CORE_PARTS, "data", "imagenet", "evaluation", "frameworks", "deploy"},
    "deploy": {*CORE_PARTS, "data"},
    "features": {*CORE_PARTS, "data"},
    "cli": {*CORE_PARTS, "data", "imagenet", "evaluation", "frameworks", "inference", "deploy", "features"},
    "__main__": {"cli", "stopping"},
}


def modules(root: Path = PACKAGE) -> dict[str, Path]:
    """Return the files of all modules of a package, by full name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(name: str, path: Path) -> set[str]:
    """Return the full names of everything that a module imports, including in functions and for type checking.

    `from a import b` counts as both `a` and `a.b`, because `b` may be a module.
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


def part_of(name: str) -> str:
    """Return the part of the package that a module belongs to; "" for the package itself."""
    return name.split(".")[1] if "." in name else ""


CORE = sorted(name for name in MODULES if part_of(name) in {"", *CORE_PARTS})


def own_imports(name: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    return {module for module in MODULES if module in IMPORTS[name]} - {"twins_dense", name}


def test_importing_the_package_is_light() -> None:
    """Run in a new process, because other tests have already imported everything."""
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


def broken_arrows(imports: dict[str, set[str]], arrows: dict[str, set[str]]) -> list[str]:
    """Return the imports from one part to another that `arrows` does not allow."""
    return [
        f"{name} imports {module}"
        for name, found in sorted(imports.items())
        for module in sorted(found)
        if part_of(name) and part_of(module) not in {"", part_of(name), *arrows[part_of(name)]}
    ]


def test_parts_import_only_what_they_may() -> None:
    inside = {name: own_imports(name) for name in MODULES}
    assert {part_of(name) for name in MODULES} - {""} == set(ARROWS)
    assert broken_arrows(inside, ARROWS) == []


def test_a_broken_arrow_is_found() -> None:
    imports = {
        "pack.models.layers": {"pack.errors", "pack.weights.load"},
        "pack.weights.load": {"pack.models.spec", "pack.weights.read"},
    }
    arrows = {"models": {"errors"}, "weights": {"errors", "models"}, "errors": set()}
    assert broken_arrows(imports, arrows) == ["pack.models.layers imports pack.weights.load"]


def test_arrows_have_no_cycle() -> None:
    left = {name: set(targets) for name, targets in ARROWS.items()}
    while left:
        free = {name for name, targets in left.items() if not targets & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in free}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("spec", {"errors"}),
        ("windows", {"errors"}),
        ("attention", {"errors", "models.windows"}),
        ("layers", {"errors", "models.attention", "models.spec", "models.windows"}),
        ("backbone", {"errors", "models.layers", "models.spec"}),
    ],
)
def test_lower_layers(module: str, allowed: set[str]) -> None:
    assert own_imports(f"twins_dense.models.{module}") <= {f"twins_dense.{name}" for name in allowed}


@pytest.mark.parametrize("module", ["models.spec", "errors"])
def test_standard_library_only(module: str) -> None:
    outside = {name.split(".")[0] for name in IMPORTS[f"twins_dense.{module}"]} - {"twins_dense"}
    assert outside <= sys.stdlib_module_names


def test_weights_know_no_model() -> None:
    weights = [name for name in MODULES if within(name, "twins_dense.weights")]
    assert weights
    for name in weights:
        assert own_imports(name) & {m for m in MODULES if part_of(m) == "models"} <= {"twins_dense.models.spec"}, name


@pytest.mark.parametrize("name", CORE)
def test_core_imports_no_other_project(name: str) -> None:
    assert {module for module in IMPORTS[name] if within(module, *OTHER_PROJECTS)} == set()


def test_the_core_is_what_we_think() -> None:
    expected = {"twins_dense", *(f"twins_dense.models.{m}" for m in ("spec", "windows", "layers", "backbone"))}
    assert {*expected, "twins_dense.factory", "twins_dense.weights.load"} <= set(CORE)
    assert not any(within(name, "twins_dense.frameworks", "twins_dense.cli", "twins_dense.data") for name in CORE)


def test_frameworks_do_not_import_each_other() -> None:
    for name in MODULES:
        for ours, theirs in (("mmengine", "detectron2"), ("detectron2", "mmengine")):
            if within(name, f"twins_dense.frameworks.{ours}"):
                imported = {module for module in IMPORTS[name] if within(module, f"twins_dense.frameworks.{theirs}")}
                assert imported == set(), name


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES if not within(name, "twins_dense.frameworks", "twins_dense.cli"))
)
def test_frameworks_are_imported_only_by_their_part(name: str) -> None:
    """All other parts work without MMEngine, mmsegmentation and detectron2."""
    assert {module for module in IMPORTS[name] if within(module, "mmengine", "mmcv", "mmseg", "detectron2")} == set()


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
    """Test the helpers of the other tests on a package with every form of import and one call of `print`."""
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
