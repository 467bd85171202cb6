"""Training recipes that replace the schedule and the sampling of an MMEngine config."""

from __future__ import annotations

import math
from typing import Any

from mmengine.config import Config

from .config import is_segmentor, model_of, num_detections
from .schedules import num_iterations, total_batch_size, warm_up_iterations

# Learning rates of AdamW at a batch size of 16, by whether the backbone has ImageNet weights; they change with the
# square root of the batch size, as is usual for Adam.
_LR = {True: 2e-4, False: 4e-4}
_DROP_PATH_RATE = {True: 0.1, False: 0.0}
_WARM_UP = 500
_MAX_NORM = 1.0


def apply_small_data_recipe(config: Config) -> None:
    """Use settings for a few dozen to a few thousand images, for the length that the run already has.

    Compared to the published recipes, gradients are clipped, the learning rate follows a cosine and suits the batch
    size, there is less stochastic depth, and Mask R-CNN samples fewer proposals, which makes iterations cheaper.
    """
    model, total = model_of(config), num_iterations(config)
    pretrained = model.backbone.get("weights") is not None
    rate = _LR[pretrained] * math.sqrt(total_batch_size(config) / 16)
    config.optim_wrapper = {
        **{name: value for name, value in config.optim_wrapper.items() if name in ("type", "dtype", "loss_scale")},
        "optimizer": {"type": "AdamW", "lr": float(f"{rate:.2g}"), "betas": (0.9, 0.999), "weight_decay": 0.05},
        "paramwise_cfg": {"custom_keys": {"pos_block": {"decay_mult": 0.0}, "norm": {"decay_mult": 0.0}}},
        "clip_grad": {"max_norm": _MAX_NORM},
    }
    config.auto_scale_lr = {"enable": False}
    warm_up = min(_WARM_UP, warm_up_iterations(total))
    config.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": warm_up},
        {
            "type": "CosineAnnealingLR",
            "by_epoch": False,
            "begin": warm_up,
            "end": total,
            "T_max": max(1, total - warm_up),
            "eta_min_ratio": 0.01,
        },
    ]
    model.backbone.drop_path_rate = _DROP_PATH_RATE[pretrained]
    if not is_segmentor(config) and model.type == "TwinsMaskRCNN":
        model.options = {**model.get("options", {}), **_few_proposals(model)}


def _few_proposals(model: Any) -> dict[str, int]:
    num_proposals = max(500, 2 * num_detections(model.get("max_dets"), model.get("options")))
    return {
        "rpn_pre_nms_top_n_train": 1000,
        "rpn_post_nms_top_n_train": num_proposals,
        "rpn_post_nms_top_n_test": num_proposals,
        "box_batch_size_per_image": 128,  # torchvision's default is 512
    }
