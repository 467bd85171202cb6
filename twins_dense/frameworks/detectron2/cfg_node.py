"""Translate YAML files for CfgNode, detectron2's older kind of config, to LazyConfigs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyCall, get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ...errors import TwinsError, one_line, shown
from ..options import MonitoringOptions
from .backbone import add_twins_config, optimizer_params
from .data import build_train_loader, coco_dataset
from .detection_evaluator import DetectionEvaluator
from .solver import multi_step_lr

# CfgNode settings that cannot be translated to a LazyConfig; they must keep their defaults.
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


def load_cfg(path: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the LazyConfig that is equivalent to a CfgNode file."""
    cfg = _twins_cfg()
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except Exception as error:  # KeyError, ValueError or AssertionError of yacs, or an error of yaml
        raise TwinsError(f"config {str(path)!r} cannot be read: {type(error).__name__}: {one_line(error)}") from None
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise TwinsError(f"override {shown(override)!r}: write KEY=VALUE, for example SOLVER.BASE_LR=1e-4")
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:
            raise TwinsError(f"override {shown(override)!r}: {type(error).__name__}: {one_line(error)[:300]}") from None
    for key in _UNREAD:
        value, default = _look_up(cfg, key), _look_up(get_cfg(), key)
        if value != default:
            raise TwinsError(f"config {str(path)!r}: {key}={value!r} is not supported, only {default!r} is")
    for key, kind in (("DATASETS.TRAIN", str), ("DATASETS.TEST", str), ("SOLVER.STEPS", (int, float))):
        if not all(isinstance(value, kind) for value in _look_up(cfg, key)):
            raise TwinsError(f"config {str(path)!r}: {key}={_look_up(cfg, key)!r} has a value of another type")
    if cfg.INPUT.MASK_FORMAT not in ("polygon", "bitmask"):
        raise TwinsError(
            f"config {str(path)!r}: INPUT.MASK_FORMAT={cfg.INPUT.MASK_FORMAT!r}: choose polygon or bitmask"
        )
    for key in ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"):
        if _look_up(cfg, key) < 1:
            raise TwinsError(f"config {str(path)!r}: {key}={_look_up(cfg, key)}: choose 1 or more")
    if cfg.SOLVER.MAX_ITER < 1:
        raise TwinsError(f"config {str(path)!r}: SOLVER.MAX_ITER={cfg.SOLVER.MAX_ITER}: choose 1 or more")
    if not len(cfg.DATASETS.TRAIN) == len(cfg.DATASETS.TEST) == 1:
        found = f"{[*cfg.DATASETS.TRAIN]} and {[*cfg.DATASETS.TEST]}"
        raise TwinsError(
            f"config {str(path)!r}: DATASETS.TRAIN and DATASETS.TEST have {found}: name one data set in each"
        )
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    dumped = cfg.dump()
    dataset = {
        "data_root": None,
        "ann_file": None,
        "image_dir": None,
        "skip_bad": False,
        "strict": False,
        "allow_outside": False,
        "indices": None,
    }
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
            "evaluator": LazyCall(DetectionEvaluator)(
                dataset_name=names[1], max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE
            ),
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
            "monitoring": asdict(MonitoringOptions()),
        },
    }
    return DictConfig(config, flags={"allow_objects": True})


def is_cfg(config: DictConfig) -> bool:
    """Return whether a config was translated from a YAML file for CfgNode."""
    return "cfg" in config.model


def build_yaml_model(cfg: str, weights: str | None) -> nn.Module:
    """Build a model on the CPU by detectron2's `build_model`, from a dumped CfgNode and weights for its backbone."""
    node = read_dump(cfg)
    node.MODEL.TWINS.WEIGHTS = weights or ""
    node.MODEL.DEVICE = "cpu"
    return build_model(node)


def build_yaml_mapper(cfg: str, is_train: bool) -> DatasetMapper:
    """Build detectron2's mapper for a dumped CfgNode."""
    return DatasetMapper(read_dump(cfg), is_train)


def read_dump(cfg: str) -> CfgNode:
    """Read a dumped CfgNode."""
    node = _twins_cfg()
    node.merge_from_other_cfg(CfgNode.load_cfg(cfg))
    return node


def _twins_cfg() -> CfgNode:
    cfg = get_cfg()
    add_twins_config(cfg)
    return cfg


def _look_up(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)
