"""Running experiments with MMEngine's Runner or detectron2's trainer, behind one interface."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..data.layouts import DataFolder
from ..errors import TwinsError, did_you_mean, one_line, requires_extra
from ..weights.catalog import CATALOG
from ..weights.read import read_checkpoint
from .options import MonitoringOptions, TrainingOptions
from .prediction import Detector, Segmentor
from .shipped_configs import find_config
from .stored_config import StoredConfigError, read_record
from .work_dir import best_checkpoint

if TYPE_CHECKING:
    import torch

    from ..deploy.exportable import Exportable
    from ..evaluation.record import Task

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

    def task_of(self, config: Any) -> Task:
        """Return whether the model of a config detects or segments."""

    def set_amp(self, config: Any) -> None:
        """Enable mixed-precision training (bfloat16)."""

    def set_data_root(self, config: Any, data_root: str | Path) -> None:
        """Make every data set of the config use another root folder."""

    def set_skip_bad(self, config: Any) -> None:
        """Skip unusable images and annotations instead of raising an error."""

    def set_strict(self, config: Any) -> None:
        """Refuse boxes of no width or height, instead of leaving them out."""

    def set_allow_outside(self, config: Any) -> None:
        """Read images outside the image folder if the data names them, instead of refusing them."""

    def set_data(self, config: Any, data: DataFolder) -> None:
        """Use the splits of a recognised data folder, and as many classes in the model as it has."""

    def set_training(self, config: Any, options: TrainingOptions) -> None:
        """Change how the config trains; schedules scale with the number of epochs."""

    def write_config(self, config: Any, stem: Path, comment: Sequence[str]) -> Path:
        """Write the config to a file that `load_config` reads, with comments at its start, and return its path."""

    def set_monitoring(self, config: Any, options: MonitoringOptions) -> None:
        """Choose what a run watches and keeps."""

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
        """Evaluate a checkpoint on the test data, write `metrics.json` and return the metrics as fractions.

        The results of each image are recorded in `work_dir/record`, and an unfinished record of the same evaluation is
        resumed (see `evaluation.record`).
        """

    def predictor(self, config: Any, checkpoint: str | Path, device: torch.device) -> Detector | Segmentor:
        """Load a trained model that computes raw results."""

    def exportable(self, config: Any, checkpoint: str | Path) -> Exportable:
        """Load a trained model in the form that can be exported."""

    def apply_overrides(self, config: Any, overrides: Sequence[str] | None = None) -> None:
        """Apply overrides of the form `key=value`; `None` applies those that were applied before once more."""

    def to_data(self, config: Any) -> dict[str, Any]:
        """Return the resolved config as plain data, which checkpoints carry."""

    def from_data(self, data: Mapping[str, Any]) -> Any:
        """Return the config that `to_data` has stored, without running or importing anything that the data names."""


class OpenedCheckpoint(NamedTuple):
    """A checkpoint with the config that it belongs to.

    Attributes:
        engine: The engine of the config.
        config: The config, as from `load_config` of the engine.
        path: Path of the checkpoint, or its catalog name.
    """

    engine: Engine
    config: Any
    path: str | Path


def open_config(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    data_root: str | Path | None = None,
    skip_bad: bool = False,
    strict: bool = False,
    allow_outside: bool = False,
) -> tuple[Engine, Any]:
    """Find the engine that a config is written for, and load the config with it.

    Args:
        config: Path of a config file, or the name of one that comes with the package (see `list_configs`).
        overrides: Overrides of the form `key=value`.
        data_root: Root folder to use for every data set of the config.
        skip_bad: Whether to skip unusable images and annotations instead of raising an error.
        strict: Whether to refuse boxes of no width or height instead of leaving them out.
        allow_outside: Whether the data may name images outside the image folder.

    Returns:
        The engine and the loaded config.

    Raises:
        TwinsError: if the config cannot be used, or packages that it needs are not installed.
    """
    path = find_config(config)
    engine = engine_of(path)
    loaded = engine.load_config(path, overrides)
    adapt_data(engine, loaded, data_root=data_root, skip_bad=skip_bad, strict=strict, allow_outside=allow_outside)
    return engine, loaded


def adapt_data(
    engine: Engine,
    config: Any,
    *,
    data_root: str | Path | None = None,
    skip_bad: bool = False,
    strict: bool = False,
    allow_outside: bool = False,
) -> None:
    """Apply options that concern the data sets of a loaded config (see `open_config`)."""
    if data_root is not None:
        engine.set_data_root(config, data_root)
    if skip_bad:
        engine.set_skip_bad(config)
    if strict:
        engine.set_strict(config)
    if allow_outside:
        engine.set_allow_outside(config)


def open_checkpoint(
    source: str | Path | tuple[str | Path, str | Path], overrides: Sequence[str] = ()
) -> OpenedCheckpoint:
    """Find the config that a checkpoint belongs to, and load it.

    Args:
        source: A work directory (its best checkpoint, else its last), a checkpoint of `train`, or a config and a
            checkpoint. Checkpoints that hold no config need the config.
        overrides: Overrides of the form `key=value` for the config.

    Raises:
        TwinsError: if there is no such checkpoint, or if it holds no config, or one that is not safe to load.
    """
    if isinstance(source, tuple):
        config, checkpoint = source
        return OpenedCheckpoint(*open_config(config, overrides), checkpoint)
    path = Path(source)
    if path.is_dir():
        path = best_checkpoint(path)
    elif not path.exists():
        raise TwinsError(
            f"model {str(source)!r}: no such work directory, checkpoint or published model; check the path"
            f"{did_you_mean(str(source), CATALOG)}"
        )
    record = read_record(read_checkpoint(path), path)
    if record is None:
        raise TwinsError(
            f"checkpoint {str(path)!r} does not contain its config: give the config as well, as in "
            "load_model((CONFIG, CHECKPOINT)) and `twins-dense predict CONFIG CHECKPOINT …`"
        )
    name, data = record
    engine = _detectron2() if name == "detectron2" else _mmengine()
    try:
        loaded = engine.from_data(data)
    except StoredConfigError as error:
        raise TwinsError(f"checkpoint {str(path)!r}: {error}; if you trust it, give its config as well") from None
    except TwinsError:
        raise
    except Exception as error:  # the data can have any form
        raise TwinsError(
            f"checkpoint {str(path)!r}: its stored config is broken ({one_line(error)}); give its config as well"
        ) from None
    engine.apply_overrides(loaded, overrides)
    return OpenedCheckpoint(engine, loaded, path)


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
        return _detectron2()
    return _mmengine()


def _detectron2() -> Engine:
    from .detectron2 import engine

    return engine


def _mmengine() -> Engine:
    with requires_extra("detection"):
        from .mmengine import engine
    return engine


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
