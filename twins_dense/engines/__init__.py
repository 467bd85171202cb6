"""The two engines that run configs: MMEngine's Runner and detectron2's trainer."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from ..errors import TwinsError


def engine_of(config: str | Path) -> ModuleType:
    """The engine that a config file is written for: `twins_dense.engines.mmengine` or `.detectron2`.

    Recognised by content: a file that imports detectron2, or other config files by Python's relative imports, is a
    LazyConfig; YAML is detectron2's; anything else is MMEngine's. Both modules offer `load_config`, `default_work_dir`,
    `set_amp`, `set_data_root`, `set_skip_bad`, `set_tta`, `check_data`, `train`, `evaluate` and
    `load_predictor`.

    Raises:
        TwinsError: for a missing or broken file, or where detectron2 is needed and not installed.
    """
    path = Path(config)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    is_lazy = path.suffix in (".yaml", ".yml") or _is_lazy_config(path)
    return importlib.import_module(f"{__name__}.{'detectron2' if is_lazy else 'mmengine'}")


def _is_lazy_config(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise TwinsError(f"config {str(path)!r} is no Python file: {' '.join(str(error).split())}") from None
    # At the top level alone: MMEngine's own relative imports stand inside `with read_base():`.
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names |= {"." * node.level + (node.module or "") for node in imports}
    return any(name.startswith(".") or name.split(".")[0] == "detectron2" for name in names)
