"""The two frameworks that run experiments: MMEngine's Runner and detectron2's trainer."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import TwinsError, one_line, requires_extra
from .prediction import Predictor
from .shipped_configs import find_config

_YAML = (".yaml", ".yml")


class Engine(Protocol):
    """What the command line asks of a framework; the modules `mmengine.engine` and `detectron2.engine` provide it.

    `config` is whatever `load_config` of the same engine returned; the `set_` functions change it in place. Every
    function raises `TwinsError` for a config, data, a checkpoint or a folder that cannot be used.
    """

    def load_config(self, path: str | Path, overrides: Sequence[str] = ()) -> Any:
        """Read a config file and apply overrides, `key=value` each."""

    def default_work_dir(self, config: Any) -> Path:
        """Return the folder of a run whose user names none."""

    def set_amp(self, config: Any) -> None:
        """Train in mixed precision (bfloat16)."""

    def set_data_root(self, config: Any, data_root: str | Path) -> None:
        """Take every data set of the config from another folder."""

    def set_skip_bad(self, config: Any) -> None:
        """Leave out images and annotations that cannot be used, instead of raising an error."""

    def set_tta(self, config: Any) -> None:
        """Evaluate with test-time augmentation."""

    def check_data(self, config: Any) -> Iterator[str]:
        """Check the files of every data set, and yield lines that say what it holds."""

    def train(
        self, config: Any, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
    ) -> Any:
        """Train, or with `resume` continue from the last checkpoint; `launch` has the options of several processes."""

    def evaluate(
        self, config: Any, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Evaluate a checkpoint on the test data, write `metrics.json` and return its metrics (fractions)."""

    def load_predictor(self, config: Any, checkpoint: str | Path, score: float) -> Predictor:
        """Load a trained model to be called on single images; `score` is the threshold of detectors."""


def open_config(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    data_root: str | Path | None = None,
    skip_bad: bool = False,
) -> tuple[Engine, Any]:
    """Load a config with the engine that it is written for.

    Args:
        config: Path of a config file, or the name of one that comes with the package, see `list_configs`.
        overrides: `key=value` each.
        data_root: Take every data set of the config from this folder.
        skip_bad: Leave out images and annotations that cannot be used, instead of raising an error.

    Returns:
        The engine and the loaded config.

    Raises:
        TwinsError: if the config cannot be used, or packages are not installed.
    """
    path = find_config(config)
    engine = engine_of(path)
    loaded = engine.load_config(path, overrides)
    if data_root is not None:
        engine.set_data_root(loaded, data_root)
    if skip_bad:
        engine.set_skip_bad(loaded)
    return engine, loaded


def engine_of(config: str | Path) -> Engine:
    """Return the engine that a config file is written for.

    The engine is recognised by the content: a file that imports detectron2, or other config files by Python's relative
    imports, is a LazyConfig; YAML is for detectron2, too; anything else is for MMEngine.

    Raises:
        TwinsError: if the file is missing or broken, or if the packages of its framework are not installed.
    """
    path = Path(config)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    if path.suffix in _YAML or _is_lazy_config(path):
        from .detectron2 import engine as detectron2

        return detectron2
    with requires_extra("detection"):
        from .mmengine import engine as mmengine
    return mmengine


def _is_lazy_config(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise TwinsError(f"config {str(path)!r} is not a Python file: {one_line(error)}") from None
    # Only at the top level: MMEngine's own relative imports stand inside `with read_base():`.
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names |= {"." * node.level + (node.module or "") for node in imports}
    return any(name.startswith(".") or name.split(".")[0] == "detectron2" for name in names)
