r"""RetinaNet, pcpvt_base, 3x schedule, COCO 2017, ImageNet weights.

twins-dense train detectron2/retinanet_pcpvt_base_3x --num-gpus 8 --data-root data/coco --skip-bad \
    model.backbone.bottom_up.net.weights=FILE

We have not trained it yet, so the score and the duration are unknown.
"""

from .common.retinanet_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.net.variant = "pcpvt_base"
model.backbone.top_block.in_channels = 512
train.output_dir = "work_dirs/detectron2/retinanet_pcpvt_base_3x"
