r"""RetinaNet, pcpvt_large, 1x schedule, COCO 2017, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train configs/torchvision/retinanet_pcpvt_large_1x.py \
    --data-root data/coco --skip-bad model.backbone.weights=FILE

Not trained by us yet: no score to expect and no duration measured.
"""

_base_ = "_base_/retinanet_1x.py"

model = dict(backbone=dict(variant="pcpvt_large"))
