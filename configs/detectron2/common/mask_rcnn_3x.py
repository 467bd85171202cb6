"""Mask R-CNN with the 3x schedule and multi-scale training."""

from .coco import dataloader, multi_scale_crop
from .mask_rcnn import model
from .schedule import lr_multiplier_3x as lr_multiplier
from .schedule import optimizer_3x as optimizer
from .schedule import train_3x as train

dataloader.train.mapper.augmentations = multi_scale_crop
dataloader.evaluator.max_dets_per_image = "${model.roi_heads.box_predictor.test_topk_per_image}"
