"""COCO 2017 with boxes only."""

_base_ = "coco_masks.py"

train_dataloader = dict(dataset=dict(with_masks=False))
val_evaluator = dict(iou_types=("bbox",))
