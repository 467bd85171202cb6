"""Mask R-CNN with the 1x schedule."""

_base_ = ["coco_masks.py", "mask_rcnn.py", "schedule_1x.py", "runtime.py"]
