"""Read LazyConfig files, YAML files and `key=value` overrides, and report mistakes in them before a run starts."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...atomic import write_atomically
from ...errors import TwinsError, did_you_mean, one_line, shown
from ...evaluation.record import Task
from ..checks import config_errors
from ..options import MonitoringOptions
from .cfg_node import load_cfg
from .guards import guarded
from .yaml_file import read_yaml

# The parts that detectron2's own tools/lazyconfig_train_net.py reads.
_PARTS = ("dataloader", "lr_multiplier", "model", "optimizer", "train")
# Defaults for settings that detectron2's own configs may lack.
_TRAIN = {
    "seed": 0,
    "amp": {"dtype": "bfloat16"},
    "auto_scale_lr": {"enabled": False, "base_batch_size": 16},
    "clip_norm": None,
    "init": None,
    "iterations_per_epoch": None,
    "monitoring": asdict(MonitoringOptions()),
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a LazyConfig file, its dump, or a YAML file for CfgNode with `add_twins_config`, and apply overrides.

    Args:
        path: A `.py` file, the `config.yaml` of a run, or a `.yaml` file for CfgNode.
        overrides: Overrides of the form `key=value`. Keys of a LazyConfig are dotted (`optimizer.lr`), and must exist
            or be an argument of the object that the node builds. Keys of a YAML file are those of CfgNode
            (`SOLVER.BASE_LR`).

    Returns:
        A LazyConfig with `model`, `optimizer`, `lr_multiplier`, `dataloader` and `train`.

    Raises:
        TwinsError: for a missing or broken file, or an unknown or malformed override.
    """
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    if path.suffix == ".pkl":
        raise TwinsError(f"config {str(path)!r} is a pickle, which can run code: use the Python config of the run")
    content = read_yaml(path) if path.suffix in (".yaml", ".yml") else None
    from_cfg = content is not None and not content.keys() & set(_PARTS)  # CfgNode's keys are in capitals
    if from_cfg:
        config = load_cfg(path, overrides)
    elif content is not None:  # a dump of a LazyConfig
        config = DictConfig(content, flags={"allow_objects": True})
    else:
        try:
            config = LazyConfig.load(str(path))
        except Exception as error:  # a config is a program and can fail in any way
            raise TwinsError(f"config {str(path)!r} cannot be read: {_described(error)}") from None
    missing = [part for part in _PARTS if part not in config]
    if missing:
        raise TwinsError(f"config {str(path)!r} has no {', '.join(missing)}: use the config of a complete experiment")
    with config_errors(f"config {str(path)!r}"):
        config.train = OmegaConf.merge(_TRAIN, config.train)
    # As attributes, because they are not part of the config.
    object.__setattr__(config, "_given", tuple(overrides))
    object.__setattr__(config, "_cfg_keys", {override.partition("=")[0] for override in overrides if from_cfg})
    apply_overrides(config, () if from_cfg else overrides)
    return config


def apply_overrides(config: DictConfig, overrides: Sequence[str] | None = None) -> None:
    """Apply overrides of the form `key=value` to a LazyConfig (see `load_config`), and remember them.

    `None` applies those that were applied before once more, because they have the last word over other changes.
    Overrides of a YAML file for CfgNode are applied while it is read, and only then; see `overridden_cfg_keys`.
    """
    if overrides is None:
        overrides = vars(config).get("_overrides", ())
    object.__setattr__(config, "_overrides", tuple(overrides))  # as an attribute, because it is not part of the config
    for override in overrides:
        _apply(config, override)


def overridden_cfg_keys(config: DictConfig) -> set[str]:
    """Return the keys of CfgNode that a config was loaded with as overrides."""
    return vars(config).get("_cfg_keys", set())


def write_config(config: DictConfig, stem: Path, comment: Sequence[str]) -> Path:
    """Write a config as a YAML file with comments at its start, and return its path, `stem` with a suffix."""
    path = stem.with_suffix(".yaml")
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / path.name
        LazyConfig.save(config, str(dump))
        content = dump.read_bytes()
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    write_atomically(path, text.encode() + b"\n" + content)
    return path


@guarded
def default_work_dir(config: DictConfig) -> Path:
    """Return the default folder of a run: the `train.output_dir` of the config.

    Raises:
        TwinsError: if the config has none.
    """
    if not config.train.get("output_dir"):
        raise TwinsError(
            "the config has no train.output_dir: add --work-dir, or use the config of a complete experiment"
        )
    return Path(config.train.output_dir)


@guarded
def set_data_root(config: DictConfig, data_root: str | Path) -> None:
    """Make `data_root` the root folder of both data sets of a config."""
    for dataset in datasets_of(config, "data_root"):
        dataset.data_root = str(data_root)


@guarded
def set_skip_bad(config: DictConfig) -> None:
    """Make both data sets of a config skip unusable images and annotations."""
    for dataset in datasets_of(config, "skip_bad"):
        dataset.skip_bad = True


@guarded
def set_strict(config: DictConfig) -> None:
    """Make both data sets of a config refuse boxes of no width or height, instead of leaving them out."""
    for dataset in datasets_of(config, "strict"):
        dataset.strict = True


@guarded
def set_allow_outside(config: DictConfig) -> None:
    """Make both data sets of a config read images outside the image folder if the data names them."""
    for dataset in datasets_of(config, "skip_bad"):  # configs of older runs have no `allow_outside`
        dataset.allow_outside = True


@guarded
def set_amp(config: DictConfig) -> None:
    """Enable mixed-precision training (bfloat16) in a config."""
    config.train.amp = {"enabled": True, "dtype": "bfloat16"}


def task_of(config: DictConfig) -> Task:
    """Return "detection", the only task of our detectron2 models."""
    return "detection"


def set_tta(config: DictConfig) -> NoReturn:
    """Raise `TwinsError`, because test-time augmentation is not supported for detectron2 models."""
    raise TwinsError("--tta works with mmsegmentation configs only: evaluate this one without it")


@guarded
def check_settings(config: DictConfig) -> None:
    """Check the settings that would make detectron2 fail in the middle of a run.

    Raises:
        TwinsError: for a setting that has the wrong type or is out of range.
    """
    iterations = config.train.get("iterations_per_epoch")
    if iterations is not None and (type(iterations) is not int or iterations < 1):
        raise TwinsError(f"train.iterations_per_epoch={iterations!r}: choose a whole number, 1 or more, or null")
    least = {
        "max_iter": 1,
        "checkpointer.period": 1,
        "log_period": 1,
        "eval_period": 0,
        "seed": 0,
        "auto_scale_lr.base_batch_size": 1,
    }
    for key, minimum in least.items():
        value = OmegaConf.select(config.train, key)
        if type(value) is not int or value < minimum:
            raise TwinsError(f"train.{key}={value!r}: choose a whole number, {minimum} or more")
    keep = config.train.checkpointer.get("max_to_keep")
    if keep is not None and (type(keep) is not int or keep < 1):
        raise TwinsError(f"train.checkpointer.max_to_keep={keep!r}: choose a whole number, 1 or more, or null for all")
    if not isinstance(config.train.init_checkpoint, str):
        raise TwinsError(f"train.init_checkpoint={config.train.init_checkpoint!r}: set it to the path of a checkpoint")
    init = config.train.get("init")
    if init is not None and not isinstance(init, str):
        raise TwinsError(f"train.init={init!r}: set it to the path of a checkpoint")
    if init and config.train.init_checkpoint:
        raise TwinsError(
            f"train.init={init!r} and train.init_checkpoint={config.train.init_checkpoint!r}: "
            "a run can start from one of them only"
        )
    if config.train.amp.dtype not in ("bfloat16", "float16"):
        raise TwinsError(f"train.amp.dtype={config.train.amp.dtype!r}: choose bfloat16 or float16")
    clip_norm = config.train.get("clip_norm")
    if clip_norm is not None and (type(clip_norm) not in (int, float) or not clip_norm > 0):
        raise TwinsError(f"train.clip_norm={clip_norm!r}: choose a number above 0, or null for no clipping")
    rate = config.optimizer.get("lr")
    if type(rate) not in (int, float):
        raise TwinsError(f"optimizer.lr={rate!r}: set it to a number")


def datasets_of(config: DictConfig, key: str) -> Iterable[DictConfig]:
    """Yield the data sets for training and testing, which must have an argument of this name."""
    for split in ("train", "test"):
        dataset = config.dataloader[split].dataset
        if key not in dataset:
            raise TwinsError(f"dataloader.{split}.dataset of the config has no {key!r}: build it with coco_dataset")
        yield dataset


def _apply(config: DictConfig, override: str) -> None:
    name = shown(override)
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except (OverrideParseException, ValueError, RecursionError) as error:
        raise TwinsError(
            f"override {name!r}: {_described(error)[:300]}; write key=value, for example train.max_iter=1000, "
            "and quote values with special characters"
        ) from None
    if parsed.is_delete():
        raise TwinsError(f"override {name!r}: keys cannot be deleted; write key=value, for example train.seed=1")
    if parsed.value() == "???":  # as OmegaConf marks a value that is missing
        raise TwinsError(f"override {name!r}: ??? is no value; write key=value, for example train.seed=1")
    parent, node = _check_key(config, parsed.key_or_group, override)
    is_argument = "_target_" in parent and "_target_" not in node if isinstance(node, DictConfig) else True
    if not is_argument and not isinstance(parsed.value(), dict):
        raise TwinsError(
            f"override {name!r}: {parsed.key_or_group} contains {', '.join(map(str, node))}: set one of these"
        )
    try:
        OmegaConf.update(config, parsed.key_or_group, parsed.value(), merge=True)
    except (OmegaConfBaseException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TwinsError(f"override {name!r}: {_described(error)[:300]}") from None


def _check_key(config: DictConfig, key: str, override: str) -> tuple[Any, Any]:
    """Return the node that contains a key, and the value of the key.

    Every part of the key must exist, except that the last one may be a new argument of the object that the node builds.
    """
    name = shown(override)
    node: Any = config
    parent: Any = None
    parts = key.split(".")
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(node, ListConfig):
            choices = [str(index) for index in range(len(node))]
        elif isinstance(node, DictConfig):
            choices = [str(choice) for choice in node if choice != "_target_"]
            if is_last:
                choices += [argument for argument in _arguments(node.get("_target_")) if argument not in choices]
        else:
            choices = []
        if part not in choices:
            parent = ".".join(parts[:depth]) or "the config"
            raise TwinsError(f"override {name!r}: {parent} has no {shown(part)!r}{did_you_mean(part, choices)}")
        parent, node = node, node[int(part)] if isinstance(node, ListConfig) else node.get(part)
    return parent, node


def _arguments(target: Any) -> list[str]:
    """Return the argument names of a callable, including those that a constructor passes to parents by `**kwargs`."""
    if isinstance(target, str):
        target = locate(target)
    if target is None or isinstance(target, Mapping):
        return []
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in inspect.getmro(target) if "__init__" in vars(base)]
    names = []
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [parameter.name for parameter in parameters if parameter.kind in named and parameter.name != "self"]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
