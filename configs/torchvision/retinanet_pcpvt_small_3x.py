r"""RetinaNet, pcpvt_small, 3x schedule, COCO 2017, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train torchvision/retinanet_pcpvt_small_3x \
    --data-root data/coco --skip-bad model.backbone.weights=FILE

We have not trained it yet, so the score and the duration are unknown.
"""

_base_ = "_base_/retinanet_3x.py"

model = dict(backbone=dict(variant="pcpvt_small"))
