"""Running experiments with MMEngine's Runner or detectron2's trainer, behind one interface."""

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
    """The interface between the command line and a framework.

    The modules `mmengine.engine` and `detectron2.engine` implement it.

    `config` is the return value of the same engine's `load_config`; the `set_` functions change it in place. All
    functions raise `TwinsError` if the config, the data, a checkpoint or a folder cannot be used.
    """

    def load_config(self, path: str | Path, overrides: Sequence[str] = ()) -> Any:
        """Read a config file and apply overrides of the form `key=value`."""

    def default_work_dir(self, config: Any) -> Path:
        """Return the work directory to use if the user does not choose one."""

    def set_amp(self, config: Any) -> None:
        """Enable mixed-precision training (bfloat16)."""

    def set_data_root(self, config: Any, data_root: str | Path) -> None:
        """Make every data set of the config use another root folder."""

    def set_skip_bad(self, config: Any) -> None:
        """Skip unusable images and annotations instead of raising an error."""

    def set_tta(self, config: Any) -> None:
        """Enable test-time augmentation for evaluation."""

    def check_data(self, config: Any) -> Iterator[str]:
        """Check the files of every data set, and yield lines that describe it."""

    def train(
        self, config: Any, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
    ) -> Any:
        """Train, or continue from the last checkpoint if `resume` is true.

        `launch` holds the options for running several processes.
        """

    def evaluate(
        self, config: Any, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Evaluate a checkpoint on the test data, write `metrics.json` and return the metrics as fractions."""

    def load_predictor(self, config: Any, checkpoint: str | Path, score: float) -> Predictor:
        """Load a trained model for prediction on single images; `score` is the score threshold for detectors."""


def open_config(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    data_root: str | Path | None = None,
    skip_bad: bool = False,
) -> tuple[Engine, Any]:
    """Find the engine that a config is written for, and load the config with it.

    Args:
        config: Path of a config file, or the name of one that comes with the package (see `list_configs`).
        overrides: Overrides of the form `key=value`.
        data_root: Root folder to use for every data set of the config.
        skip_bad: Whether to skip unusable images and annotations instead of raising an error.

    Returns:
        The engine and the loaded config.

    Raises:
        TwinsError: if the config cannot be used, or packages that it needs are not installed.
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

    YAML files belong to detectron2. A Python file is a LazyConfig for detectron2 if it imports detectron2, or imports
    other config files by relative imports; any other Python file belongs to MMEngine.

    Raises:
        TwinsError: if the file is missing or broken, or if its framework is not installed.
    """
    path = Path(config)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    if path.suffix in (*_YAML, ".pkl") or _is_lazy_config(path):
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
    # Only look at the top level: MMEngine's relative imports are inside `with read_base():`.
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names |= {"." * node.level + (node.module or "") for node in imports}
    return any(name.startswith(".") or name.split(".")[0] == "detectron2" for name in names)
