"""The recipe for small data sets as settings of an MMEngine config."""

from __future__ import annotations

from mmengine.config import Config

from .. import recipes
from .config import model_of, num_detections
from .schedules import num_iterations, total_batch_size


def apply_small_data_recipe(config: Config, *, pretrained: bool) -> None:
    """Use the recipe for small data sets, for the length and the batch size that the run already has.

    Args:
        config: Config to change.
        pretrained: Whether the backbone starts from trained weights.
    """
    model, total = model_of(config), num_iterations(config)
    kept = {name: value for name, value in config.optim_wrapper.items() if name in ("type", "dtype", "loss_scale")}
    config.optim_wrapper = {
        **kept,
        "optimizer": {
            "type": "AdamW",
            "lr": recipes.learning_rate(total_batch_size(config), pretrained=pretrained),
            "weight_decay": recipes.WEIGHT_DECAY,
        },
        "paramwise_cfg": {"custom_keys": {name: {"decay_mult": 0.0} for name in recipes.NO_DECAY}},
        "clip_grad": {"max_norm": recipes.CLIP_NORM},
    }
    config.auto_scale_lr = {"enable": False}
    warm_up = recipes.warmup_iterations(recipes.WARMUP_ITERATIONS, total)
    config.param_scheduler = [
        {"type": "LinearLR", "start_factor": recipes.WARMUP_FACTOR, "by_epoch": False, "begin": 0, "end": warm_up},
        {
            "type": "CosineAnnealingLR",
            "by_epoch": False,
            "begin": warm_up,
            "end": total,
            "T_max": max(1, total - warm_up),
            "eta_min_ratio": recipes.FINAL_FACTOR,
        },
    ]
    model.backbone.drop_path_rate = recipes.DROP_PATH_RATE[pretrained]
    if model.type == "TwinsMaskRCNN":
        options = model.get("options") or {}
        num_proposals = recipes.num_proposals(num_detections(model.get("max_dets"), options))
        model.options = {
            **options,
            "rpn_pre_nms_top_n_train": recipes.PRE_NMS_TOPK,
            "rpn_post_nms_top_n_train": num_proposals,
            "rpn_post_nms_top_n_test": num_proposals,
            "box_batch_size_per_image": recipes.ROI_BATCH,
        }
