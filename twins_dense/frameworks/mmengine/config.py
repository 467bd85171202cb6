"""Reading MMEngine config files and `key=value` overrides, with typing errors found before anything starts."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from ...errors import TwinsError, did_you_mean

_DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Keys that MMEngine reads beside the Runner's own arguments.
_OTHER_KEYS = {
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an MMEngine config file and apply overrides.

    Args:
        path: a Python config.
        overrides: `key=value` each; keys are dotted (`optim_wrapper.optimizer.lr`, `param_scheduler.0.end`) and must
            exist in the config, values are Python literals (`1e-4`, `[480, 800]`, `None`) or else strings.

    Raises:
        TwinsError: for a missing or broken file, an unknown top-level key, an unknown or malformed override.
    """
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is a program and can fail in any way
        reason = str(error).strip().splitlines()
        raise TwinsError(f"config {str(path)!r} can't be read: {type(error).__name__}: {' '.join(reason)}") from None
    _check_keys(config, str(path))
    # Test data that is the validation data stays so.
    shared = [part for part in ("dataloader", "evaluator") if _is_shared(config, part)]
    for override in overrides:
        key, value = _parse_override(override)
        _set(config, key, value, override)
    for part in shared:
        if not any(override.startswith(f"test_{part}") for override in overrides):
            config[f"test_{part}"] = copy.deepcopy(config[f"val_{part}"])
    return config


def default_work_dir(config: Config) -> Path:
    """Where a run goes unless it is told: the config's `work_dir`, or `work_dirs` and the config's name."""
    return Path(config.get("work_dir") or Path("work_dirs") / Path(config.filename).stem)


def set_data_root(config: Config, data_root: str | Path) -> None:
    """Let the relative paths of every data set of a config start at `data_root`."""
    for dataset in _datasets(config):
        dataset.data_root = str(data_root)


def set_skip_bad(config: Config) -> None:
    """Let every data set of a config leave out what it can't use."""
    for dataset in _datasets(config):
        dataset.skip_bad = True


def set_amp(config: Config) -> None:
    """Let a config train in mixed precision, in bfloat16."""
    config.optim_wrapper = {**config.get("optim_wrapper", {}), "type": "AmpOptimWrapper", "dtype": "bfloat16"}


def set_tta(config: Config) -> None:
    """Let a config be evaluated on averages over the sizes and flips of its `tta_pipeline`."""
    if config.get("tta_model") is None or config.get("tta_pipeline") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no tta_model with a tta_pipeline: leave out --tta")
    config.test_dataloader = copy.deepcopy(test_part(config, "dataloader"))
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = {**config.tta_model, "module": config.model}


def test_part(config: Config, part: Literal["dataloader", "evaluator", "cfg"]) -> Any:
    """The config's part for testing, or for validation where it has none."""
    return config.get(f"test_{part}") or config.get(f"val_{part}")


def check_settings(config: Config) -> None:
    """Look at the numbers that MMEngine would trip over in the middle of a run.

    Raises:
        TwinsError: for one that is of another type, or too small, or that a kill could turn against the run.
    """
    for key in ("max_epochs", "max_iters", "val_interval"):
        value = config.train_cfg.get(key, 1) if config.get("train_cfg") else 1
        if type(value) is not int or value < 1:
            raise TwinsError(f"train_cfg.{key}={value!r}: give a whole number, 1 or more")
    if config.get("default_hooks", {}).get("checkpoint", {}).get("max_keep_ckpts") == 1:
        raise TwinsError(
            "default_hooks.checkpoint.max_keep_ckpts=1: give 2 or more, or -1 for all: the older one is removed before "
            "the newer one is written, and a run that is killed in between could not go on"
        )
    segments = "decode_head" in config.get("model", {}).get("module", config.get("model", {}))
    for split in ("val", "test") if segments else ():
        batch_size = (config.get(f"{split}_dataloader") or {}).get("batch_size", 1)
        if batch_size != 1:
            raise TwinsError(f"{split}_dataloader.batch_size={batch_size}: images have different sizes, give 1")


def _is_shared(config: Config, part: str) -> bool:
    return config.get(f"val_{part}") is not None and config.get(f"test_{part}") == config[f"val_{part}"]


def _datasets(config: Config) -> Iterator[Any]:
    return (config[name].dataset for name in _DATALOADERS if config.get(name) is not None)


def _check_keys(config: Config, path: str) -> None:
    known = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | _OTHER_KEYS
    for key, value in config.items():
        imported = isinstance(value, (ModuleType, FunctionType, type))
        if key not in known and not key.startswith("_") and not imported:
            raise TwinsError(
                f"config {path!r}: unknown key {key!r}{did_you_mean(key, known)}; "
                "names of your own begin with an underscore"
            )
    scaling = {"enable", "base_batch_size"}
    for key in config.get("auto_scale_lr") or {}:  # MMEngine would leave the learning rate as it is
        if key not in scaling:
            raise TwinsError(f"config {path!r}: auto_scale_lr has an unknown key {key!r}{did_you_mean(key, scaling)}")


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise TwinsError(f"override {override!r}: write key=value, for example train_cfg.max_epochs=12")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text


def _set(config: Config, key: str, value: Any, override: str) -> None:
    *parents, last = key.split(".")
    node: Any = config
    for depth, part in enumerate([*parents, last]):
        if isinstance(node, list):
            found = part.isdigit() and int(part) < len(node)
            choices: Iterable[str] = map(str, range(len(node)))
        else:
            choices = node.keys() if hasattr(node, "keys") else ()
            found = part in choices
        if not found:
            parent = ".".join(parents[:depth]) or "the config"
            raise TwinsError(f"override {override!r}: {parent} has no {part!r}{did_you_mean(part, choices)}")
        index: Any = int(part) if isinstance(node, list) else part
        if depth < len(parents):
            node = node[index]
        else:
            node[index] = ConfigDict(value) if isinstance(value, dict) else value
