"""RetinaNet with the 1x schedule."""

from .coco import dataloader
from .retinanet import model
from .schedule import lr_multiplier_1x as lr_multiplier
from .schedule import optimizer_1x as optimizer
from .schedule import train_1x as train

dataloader.train.mapper.use_instance_mask = False
dataloader.evaluator.max_dets_per_image = "${model.max_detections_per_image}"
