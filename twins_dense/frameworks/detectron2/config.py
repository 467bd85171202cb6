"""Reading LazyConfig files, YAML files and `key=value` overrides, with typing errors found before anything starts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode, LazyCall, LazyConfig, get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.solver import WarmupParamScheduler
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import MultiStepParamScheduler
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ...errors import TwinsError, did_you_mean
from .backbone import add_twins_config, optimizer_params
from .data import build_train_loader, coco_dataset

# What detectron2's own tools/lazyconfig_train_net.py reads.
_PARTS = ("dataloader", "lr_multiplier", "model", "optimizer", "train")
# What detectron2's own configs needn't have.
_TRAIN = {"seed": 0, "amp": {"dtype": "bfloat16"}, "auto_scale_lr": {"enabled": False, "base_batch_size": 16}}
# What a CfgNode may say and the LazyConfig made of it doesn't.
_UNREAD = (
    "DATALOADER.SAMPLER_TRAIN",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "SOLVER.CLIP_GRADIENTS.ENABLED",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.GAMMA",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_METHOD",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
    "TEST.AUG.ENABLED",
    "TEST.PRECISE_BN.ENABLED",
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a LazyConfig file, or a YAML file of CfgNode with `add_twins_config`, and apply overrides.

    Args:
        path: a `.py` or `.yaml` file.
        overrides: `key=value` each. Keys of a LazyConfig are dotted (`optimizer.lr`) and must exist, or be an argument
            of what the node calls; keys of a YAML file are CfgNode's (`SOLVER.BASE_LR`).

    Returns:
        A LazyConfig with `model`, `optimizer`, `lr_multiplier`, `dataloader` and `train`.

    Raises:
        TwinsError: for a missing or broken file, an unknown or malformed override.
    """
    path = Path(path)
    if not path.is_file():
        raise TwinsError(f"config {str(path)!r}: no such file; check the path")
    if path.suffix in (".yaml", ".yml"):
        return _load_yaml(path, overrides)
    try:
        config = LazyConfig.load(str(path))
    except Exception as error:  # a config is a program and can fail in any way
        raise TwinsError(f"config {str(path)!r} can't be read: {_one_line(error)}") from None
    missing = [part for part in _PARTS if part not in config]
    if missing:
        raise TwinsError(f"config {str(path)!r} has no {', '.join(missing)}: give a config of a whole experiment")
    config.train = OmegaConf.merge(_TRAIN, config.train)
    for override in overrides:
        _apply(config, override)
    return config


def default_work_dir(config: DictConfig) -> Path:
    """Where a run goes unless it is told: the config's `train.output_dir`; `TwinsError` where it has none."""
    if not config.train.get("output_dir"):
        raise TwinsError("the config has no train.output_dir: give --work-dir, or a config of a whole experiment")
    return Path(config.train.output_dir)


def set_data_root(config: DictConfig, data_root: str | Path) -> None:
    """Let both data sets of a config lie in the folder `data_root`."""
    for dataset in _datasets(config, "data_root"):
        dataset.data_root = str(data_root)


def set_skip_bad(config: DictConfig) -> None:
    """Let both data sets of a config leave out what they can't use."""
    for dataset in _datasets(config, "skip_bad"):
        dataset.skip_bad = True


def set_amp(config: DictConfig) -> None:
    """Let a config train in mixed precision, in bfloat16."""
    config.train.amp = {"enabled": True, "dtype": "bfloat16"}


def set_tta(config: DictConfig) -> NoReturn:
    """Refuse: detectron2's detectors are evaluated at one size here."""
    raise TwinsError("--tta is for mmsegmentation's configs: evaluate this one without it")


def check_settings(config: DictConfig) -> None:
    """Look at the numbers that detectron2 would trip over in the middle of a run.

    Raises:
        TwinsError: for one that is of another type, or too small.
    """
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
            raise TwinsError(f"train.{key}={value!r}: give a whole number, {minimum} or more")
    keep = config.train.checkpointer.get("max_to_keep")
    if keep is not None and (type(keep) is not int or keep < 1):
        raise TwinsError(f"train.checkpointer.max_to_keep={keep!r}: give a whole number, 1 or more, or null for all")
    if not isinstance(config.train.init_checkpoint, str):
        raise TwinsError(f"train.init_checkpoint={config.train.init_checkpoint!r}: give a file")
    if config.train.amp.dtype not in ("bfloat16", "float16"):
        raise TwinsError(f"train.amp.dtype={config.train.amp.dtype!r}: give bfloat16 or float16")
    rate = config.optimizer.get("lr")
    if type(rate) not in (int, float):
        raise TwinsError(f"optimizer.lr={rate!r}: give a number")


def multi_step_lr(max_iter: int, *, milestones: Sequence[float], warmup_iters: int) -> WarmupParamScheduler:
    """The published schedule: linear warm-up from x 0.001, then / 10 at each milestone.

    Args:
        max_iter: iterations of the whole run.
        milestones: as fractions of the run, rising.
        warmup_iters: iterations of the warm-up, which ends before the first milestone however short the run is.

    Raises:
        TwinsError: for a run without iterations.
    """
    if max_iter < 1:
        raise TwinsError(f"train.max_iter={max_iter}: give 1 or more")
    # In a run of a few iterations, steps may fall together, or on its end.
    steps = sorted({round(milestone * max_iter) for milestone in milestones} - {0, max_iter})
    values = [0.1**step for step in range(len(steps) + 1)]
    schedule = MultiStepParamScheduler(values, milestones=[*steps, max_iter])
    # detectron2 warms up to the rate that the schedule has at the end of the warm-up.
    warmup_iters = min(warmup_iters, min(steps, default=max_iter) - 1)
    return WarmupParamScheduler(schedule, warmup_factor=0.001, warmup_length=warmup_iters / max_iter)


def build_yaml_model(cfg: str, weights: str | None) -> nn.Module:
    """detectron2's `build_model` for a dumped CfgNode with `add_twins_config` and a backbone's weights, on the CPU."""
    node = _read_dump(cfg)
    node.MODEL.TWINS.WEIGHTS = weights or ""
    node.MODEL.DEVICE = "cpu"
    return build_model(node)


def build_yaml_mapper(cfg: str, is_train: bool) -> DatasetMapper:
    """detectron2's mapper for a dumped CfgNode."""
    return DatasetMapper(_read_dump(cfg), is_train)


def _read_dump(cfg: str) -> CfgNode:
    node = _twins_cfg()
    node.merge_from_other_cfg(CfgNode.load_cfg(cfg))
    return node


def _twins_cfg() -> CfgNode:
    cfg = get_cfg()
    add_twins_config(cfg)
    return cfg


def _load_yaml(path: Path, overrides: Sequence[str]) -> DictConfig:
    """The LazyConfig that says what a CfgNode says."""
    cfg = _twins_cfg()
    try:
        cfg.merge_from_file(str(path))
    except Exception as error:  # yacs raises KeyError, ValueError, AssertionError; yaml its own
        raise TwinsError(f"config {str(path)!r} can't be read: {_one_line(error)}") from None
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise TwinsError(f"override {override!r}: write KEY=VALUE, for example SOLVER.BASE_LR=1e-4")
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:
            raise TwinsError(f"override {override!r}: {_one_line(error)}") from None
    for key in _UNREAD:
        value, default = _look_up(cfg, key), _look_up(get_cfg(), key)
        if value != default:
            raise TwinsError(f"config {str(path)!r}: {key}={value!r} is not read here, only {default!r} is")
    if cfg.SOLVER.MAX_ITER < 1:
        raise TwinsError(f"config {str(path)!r}: SOLVER.MAX_ITER={cfg.SOLVER.MAX_ITER}: give 1 or more")
    if not len(cfg.DATASETS.TRAIN) == len(cfg.DATASETS.TEST) == 1:
        found = f"{[*cfg.DATASETS.TRAIN]} and {[*cfg.DATASETS.TEST]}"
        raise TwinsError(f"config {str(path)!r}: DATASETS.TRAIN and DATASETS.TEST have {found}: give one each")
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    dumped = cfg.dump()
    dataset = {"data_root": None, "ann_file": None, "image_dir": None, "skip_bad": False, "indices": None}
    config = {
        "model": LazyCall(build_yaml_model)(cfg=dumped, weights=cfg.MODEL.TWINS.WEIGHTS),
        "optimizer": LazyCall(torch.optim.AdamW)(
            params=LazyCall(optimizer_params)(no_decay=cfg.SOLVER.NO_DECAY),
            lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        ),
        "lr_multiplier": LazyCall(multi_step_lr)(
            max_iter=cfg.SOLVER.MAX_ITER,
            milestones=[step / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER],
            warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        ),
        "dataloader": {
            "train": LazyCall(build_train_loader)(
                dataset=LazyCall(coco_dataset)(
                    name=names[0],
                    training=True,
                    with_masks=cfg.MODEL.MASK_ON,
                    filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                    **dataset,
                ),
                mapper=LazyCall(build_yaml_mapper)(cfg=dumped, is_train=True),
                total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
                seed=max(cfg.SEED, 0),
            ),
            "test": LazyCall(build_detection_test_loader)(
                dataset=LazyCall(coco_dataset)(name=names[1], training=False, **dataset),
                mapper=LazyCall(build_yaml_mapper)(cfg=dumped, is_train=False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            ),
            "evaluator": LazyCall(COCOEvaluator)(dataset_name=names[1]),
        },
        "train": {
            "output_dir": cfg.OUTPUT_DIR,
            "init_checkpoint": cfg.MODEL.WEIGHTS,
            "max_iter": cfg.SOLVER.MAX_ITER,
            "seed": max(cfg.SEED, 0),
            "amp": {"enabled": cfg.SOLVER.AMP.ENABLED, "dtype": "bfloat16"},
            "ddp": {"broadcast_buffers": False},
            "checkpointer": {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": 3},
            "eval_period": cfg.TEST.EVAL_PERIOD,
            "log_period": 20,
            "device": cfg.MODEL.DEVICE,
            "auto_scale_lr": {"enabled": False, "base_batch_size": cfg.SOLVER.IMS_PER_BATCH},
        },
    }
    return DictConfig(config, flags={"allow_objects": True})


def _look_up(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def _datasets(config: DictConfig, key: str) -> Iterable[DictConfig]:
    for split in ("train", "test"):
        dataset = config.dataloader[split].dataset
        if key not in dataset:
            raise TwinsError(f"dataloader.{split}.dataset of the config has no {key!r}: let it call coco_dataset")
        yield dataset


def _apply(config: DictConfig, override: str) -> None:
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except (OverrideParseException, ValueError) as error:
        raise TwinsError(
            f"override {override!r}: {_one_line(error)}; write key=value, for example train.max_iter=1000, "
            "and quote values with special characters"
        ) from None
    if parsed.is_delete():
        raise TwinsError(f"override {override!r}: nothing can be deleted; write key=value, for example train.seed=1")
    parent, node = _check_key(config, parsed.key_or_group, override)
    is_argument = "_target_" in parent and "_target_" not in node if isinstance(node, DictConfig) else True
    if not is_argument and not isinstance(parsed.value(), dict):
        raise TwinsError(
            f"override {override!r}: {parsed.key_or_group} holds {', '.join(map(str, node))}: give one of these a value"
        )
    try:
        OmegaConf.update(config, parsed.key_or_group, parsed.value(), merge=True)
    except (OmegaConfBaseException, ValueError, KeyError) as error:
        raise TwinsError(f"override {override!r}: {_one_line(error)}") from None


def _check_key(config: DictConfig, key: str, override: str) -> tuple[Any, Any]:
    """The node that has the key, and what it holds.

    Every part of the key must be there, or the last one be an argument of what the node calls.
    """
    node: Any = config
    parent: Any = None
    parts = key.split(".")
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(node, ListConfig):
            choices = [str(index) for index in range(len(node))]
        elif isinstance(node, DictConfig):
            choices = [str(name) for name in node if name != "_target_"]
            if is_last:
                choices += [name for name in _arguments(node.get("_target_")) if name not in choices]
        else:
            choices = []
        if part not in choices:
            parent = ".".join(parts[:depth]) or "the config"
            raise TwinsError(f"override {override!r}: {parent} has no {part!r}{did_you_mean(part, choices)}")
        parent, node = node, node[int(part)] if isinstance(node, ListConfig) else node.get(part)
    return parent, node


def _arguments(target: Any) -> list[str]:
    """Names of what a callable takes; of a class, also of what its constructor hands to the next one as `**kwargs`."""
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


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{type(error).__name__}: {' '.join(str(text).split())}"
