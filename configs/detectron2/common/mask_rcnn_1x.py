"""Mask R-CNN with the 1x schedule."""

from .coco import dataloader
from .mask_rcnn import model
from .schedule import lr_multiplier_1x as lr_multiplier
from .schedule import optimizer_1x as optimizer
from .schedule import train_1x as train

optimizer.lr = 2e-4
dataloader.evaluator.max_dets_per_image = "${model.roi_heads.box_predictor.test_topk_per_image}"
