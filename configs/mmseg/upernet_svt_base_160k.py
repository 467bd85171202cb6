r"""UPerNet, svt_base, 160k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train mmseg/upernet_svt_base_160k \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mIoU of mmsegmentation's own training with this recipe: 48.04 / 48.87 (single scale / six scales with flips,
from its model zoo). We have not trained it yet, so the duration is unknown.
"""

_base_ = "_base_/upernet_160k.py"

model = dict(
    backbone=dict(variant="svt_base"),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
