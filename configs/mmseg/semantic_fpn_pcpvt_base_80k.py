r"""Semantic FPN, pcpvt_base, 80k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train mmseg/semantic_fpn_pcpvt_base_80k \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mIoU of mmsegmentation's own training with this recipe: 45.66 / 46.48 (single scale / six scales with flips,
from its model zoo). We have not trained it yet, so the duration is unknown.
"""

_base_ = "_base_/semantic_fpn_80k.py"

model = dict(backbone=dict(variant="pcpvt_base"), neck=dict(in_channels=[64, 128, 320, 512]))
