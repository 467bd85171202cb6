"""Read MMEngine config files and `key=value` overrides, and report mistakes in them before a run starts."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from ...atomic import write_atomically
from ...errors import TwinsError, did_you_mean, one_line, shown
from ...evaluation.record import Task
from ..checks import config_errors, guard
from .config_types import check_types

# The names of `max_dets` in torchvision's Mask R-CNN and RetinaNet.
OWN_MAX_DETS = ("box_detections_per_img", "detections_per_img")
_DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Top-level keys that MMEngine reads in addition to the arguments of Runner.
_OTHER_KEYS = {
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "init",  # ours, see `transfer.read_for_transfer`
    "model_wrapper_cfg",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


def building(config: Config) -> AbstractContextManager[None]:
    """Return a context manager that turns errors raised while a part of a config is built into one line.

    The line names the overrides, one of which is often the reason.
    """
    overrides = vars(config).get("_overrides", ())
    given = f" with {shown(' '.join(overrides))}" if overrides else ""
    return config_errors(f"config {str(config.filename)!r}{given}")


# Decorates functions of a config: any error from an unusual value in the config becomes one line.
guarded = guard(building)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an MMEngine config file and apply overrides.

    Args:
        path: A Python config file.
        overrides: Overrides of the form `key=value`. Keys are dotted (`optim_wrapper.optimizer.lr`,
            `param_scheduler.0.end`) and must exist in the config; values are Python literals (`1e-4`, `[480, 800]`,
            `None`) or, failing that, strings.

    Raises:
        TwinsError: for a missing or broken file, an unknown top-level key, or an unknown or malformed override.
    """
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is a program and can fail in any way
        raise TwinsError(f"config {str(path)!r} cannot be read: {type(error).__name__}: {one_line(error)}") from None
    _check_keys(config, str(path))
    apply_overrides(config, overrides)
    return config


def apply_overrides(config: Config, overrides: Sequence[str] | None = None) -> None:
    """Apply overrides of the form `key=value` to a config (see `load_config`), and remember them.

    `None` applies those that were applied before once more, because they have the last word over other changes.
    """
    if overrides is None:
        overrides = vars(config).get("_overrides", ())
    object.__setattr__(config, "_overrides", tuple(overrides))  # as an attribute, because it is not part of the config
    # Test settings that equal the validation settings also get their overrides.
    shared = [part for part in ("dataloader", "evaluator") if _is_shared(config, part)]
    for override in overrides:
        key, value = _parse_override(override)
        _set(config, key, value, override)
    for part in shared:
        if not any(override.startswith(f"test_{part}") for override in overrides):
            config[f"test_{part}"] = copy.deepcopy(config[f"val_{part}"])
    check_types(dict(config.items()), f"config {str(config.filename)!r}")


def write_config(config: Config, stem: Path, comment: Sequence[str]) -> Path:
    """Write a config as a Python file with comments at its start, and return its path, `stem` with a suffix."""
    path = stem.with_suffix(".py")
    # Names with an underscore are variables of the original file.
    content = Config({key: value for key, value in config.items() if not key.startswith("_")})
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    write_atomically(path, f"{text}\n{content.pretty_text}".encode())
    return path


@guarded
def default_work_dir(config: Config) -> Path:
    """Return the default folder of a run: the `work_dir` of the config, or `work_dirs/NAME_OF_THE_CONFIG`."""
    return Path(config.get("work_dir") or Path("work_dirs") / Path(config.filename).stem)


@guarded
def set_data_root(config: Config, data_root: str | Path) -> None:
    """Make `data_root` the root folder of every data set of a config."""
    for dataset in datasets_of(config):
        dataset.data_root = str(data_root)


@guarded
def set_skip_bad(config: Config) -> None:
    """Make every data set of a config skip unusable images and annotations."""
    for dataset in datasets_of(config):
        dataset.skip_bad = True


@guarded
def set_strict(config: Config) -> None:
    """Make every data set of a config refuse boxes of no width or height, instead of leaving them out.

    Raises:
        TwinsError: if the config is for segmentation.
    """
    if is_segmentor(config):
        raise TwinsError(f"--strict is about boxes, but config {str(config.filename)!r} is for segmentation; omit it")
    for dataset in datasets_of(config):
        dataset.strict = True


@guarded
def set_allow_outside(config: Config) -> None:
    """Make every data set of a config read images outside the image folder if the data names them."""
    for dataset in datasets_of(config):
        dataset.allow_outside = True


@guarded
def set_amp(config: Config) -> None:
    """Enable mixed-precision training (bfloat16) in a config."""
    config.optim_wrapper = {**config.get("optim_wrapper", {}), "type": "AmpOptimWrapper", "dtype": "bfloat16"}


def task_of(config: Config) -> Task:
    """Return the task of the model of a config."""
    return "segmentation" if is_segmentor(config) else "detection"


@guarded
def set_tta(config: Config) -> None:
    """Make a config evaluate predictions averaged over the sizes and flips of its `tta_pipeline`."""
    if config.get("tta_model") is None or config.get("tta_pipeline") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no tta_model with a tta_pipeline: leave out --tta")
    config.test_dataloader = copy.deepcopy(test_part(config, "dataloader"))
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = {**config.tta_model, "module": model_of(config)}
    if config.model.type in ("SegTTAModel", "mmseg.SegTTAModel"):
        config.model.type = "twins_dense.SegTTAModel"  # the same, and it returns probabilities


def test_part(config: Config, part: Literal["dataloader", "evaluator", "cfg"]) -> Any:
    """Return the test part of a config, or the validation part if it has no test part."""
    return config.get(f"test_{part}") or config.get(f"val_{part}")


@guarded
def check_settings(config: Config) -> None:
    """Check the settings that would make MMEngine fail in the middle of a run.

    Raises:
        TwinsError: for a setting that has the wrong type, is out of range, or could make a killed run impossible to
            resume.
    """
    for key in ("max_epochs", "max_iters", "val_interval"):
        value = config.train_cfg.get(key, 1) if config.get("train_cfg") else 1
        if type(value) is not int or value < 1:
            raise TwinsError(f"train_cfg.{key}={value!r}: choose a whole number, 1 or more")
    if config.get("default_hooks", {}).get("checkpoint", {}).get("max_keep_ckpts") == 1:
        raise TwinsError(
            "default_hooks.checkpoint.max_keep_ckpts=1: choose 2 or more, or -1 for all: the old checkpoint is removed "
            "before the new one is written, so a run that is killed in between could not be resumed"
        )
    for name in _DATALOADERS:
        batch_size = (config.get(name) or {}).get("batch_size", 1)
        if type(batch_size) is not int or batch_size < 1:
            raise TwinsError(f"{name}.batch_size={batch_size!r}: choose a whole number, 1 or more")
    for split in ("val", "test") if is_segmentor(config) else ():
        batch_size = (config.get(f"{split}_dataloader") or {}).get("batch_size", 1)
        if batch_size != 1:
            raise TwinsError(f"{split}_dataloader.batch_size={batch_size}: images differ in size, so it must be 1")


def model_of(config: Config) -> Any:
    """Return the settings of the model, without test-time augmentation around it."""
    model = config.get("model", {})
    return model.get("module", model)


def is_segmentor(config: Config) -> bool:
    """Return whether the model of a config segments images; otherwise it detects objects."""
    return "decode_head" in model_of(config)


def num_detections(max_dets: int | None, options: Mapping[str, Any] | None) -> int:
    """Return the largest number of detections per image from the settings `max_dets` and `options` of a detector.

    The default is 100, as in COCO's metrics. Instead of `max_dets`, `options` may contain torchvision's own setting.

    Raises:
        TwinsError: if the number is not a positive whole number, or `options` contains a different one.
    """
    own = {name: value for name, value in (options or {}).items() if name in OWN_MAX_DETS}
    for name, value in own.items():
        if max_dets is not None and value != max_dets:
            raise TwinsError(f"model.options.{name}={value!r}, but model.max_dets={max_dets!r}: set only max_dets")
    found = max_dets if max_dets is not None else next(iter(own.values()), 100)
    if type(found) is not int or found < 1:
        raise TwinsError(f"model.max_dets={found!r}: choose a whole number, 1 or more")
    return found


@guarded
def set_max_dets_of_metric(config: Config) -> None:
    """Make `CocoMetric` count as many detections per image as the detector finds, and at least COCO's 100."""
    model = model_of(config)
    for split in ("val", "test"):
        evaluators = config.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if evaluator.get("type") == "CocoMetric":
                evaluator.max_dets = max(100, num_detections(model.get("max_dets"), model.get("options")))


def without_initial_weights(config: Config) -> Config:
    """Return a copy of a config without ImageNet weights, for a model that will load a checkpoint instead."""
    config = copy.deepcopy(config)
    model = model_of(config)
    if model.get("backbone", {}).get("weights") is not None:
        model.backbone.weights = None
    return config


def without_run_settings(config: Config) -> Config:
    """Return a copy of a config without the settings of a single run, to be stored for other runs."""
    config = copy.deepcopy(config)
    for key in ("work_dir", "experiment_name", "launcher", "resume"):
        config.pop(key, None)
    return config


def settings_called(name: str, node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every setting called `name` below `node`.

    Args:
        name: Name of the settings.
        node: A part of a config.
        path: Dotted path of that part.
    """
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        if key == name:
            yield f"{path}.{key}", value
        else:
            yield from settings_called(name, value, f"{path}.{key}")


def _is_shared(config: Config, part: str) -> bool:
    return config.get(f"val_{part}") is not None and config.get(f"test_{part}") == config[f"val_{part}"]


def datasets_of(config: Config) -> Iterator[Any]:
    """Yield the settings of every data set of a config, for training first."""
    return (config[name].dataset for name in _DATALOADERS if config.get(name) is not None)


def _check_keys(config: Config, path: str) -> None:
    known = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | _OTHER_KEYS
    for key, value in config.items():
        imported = isinstance(value, (ModuleType, FunctionType, type))
        if key not in known and not key.startswith("_") and not imported:
            raise TwinsError(
                f"config {path!r}: unknown key {key!r}{did_you_mean(key, known)}; "
                "start names of your own with an underscore"
            )
    scaling = {"enable", "base_batch_size"}
    for key in config.get("auto_scale_lr") or {}:  # MMEngine would silently not scale the learning rate
        if key not in scaling:
            raise TwinsError(f"config {path!r}: auto_scale_lr has an unknown key {key!r}{did_you_mean(key, scaling)}")


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise TwinsError(f"override {shown(override)!r}: write key=value, for example train_cfg.max_epochs=12")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text
    except (TypeError, MemoryError, RecursionError) as error:  # `{[]: 1}`, or thousands of operators
        raise TwinsError(f"override {shown(override)!r}: the value cannot be read ({one_line(error)})") from None
    try:
        repr(value)
    except ValueError as error:  # a hexadecimal number of thousands of digits, which no message could show
        raise TwinsError(f"override {shown(override)!r}: the value cannot be used ({one_line(error)})") from None
    return key, value


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
            hint = did_you_mean(shown(part), map(str, choices))
            raise TwinsError(f"override {shown(override)!r}: {shown(parent)} has no {shown(part)!r}{hint}")
        index: Any = int(part) if isinstance(node, list) else part
        if depth < len(parents):
            node = node[index]
        else:
            node[index] = ConfigDict(value) if isinstance(value, dict) else value
