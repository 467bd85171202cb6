"""Mask R-CNN with the 3x schedule and multi-scale training."""

_base_ = ["coco_masks.py", "mask_rcnn.py", "schedule_3x.py", "runtime.py"]

# Training draws one short side per image; evaluation uses the last.
model = dict(min_size={{_base_._SHORT_SIDES}})
train_dataloader = dict(dataset=dict(transforms={{_base_._MULTI_SCALE_CROP}}))
