r"""Mask R-CNN, svt_base, 1x schedule, COCO 2017, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train torchvision/mask_rcnn_svt_base_1x \
    --data-root data/coco --skip-bad model.backbone.weights=FILE

We have not trained it yet, so the score and the duration are unknown.
"""

_base_ = "_base_/mask_rcnn_1x.py"

model = dict(backbone=dict(variant="svt_base"))
