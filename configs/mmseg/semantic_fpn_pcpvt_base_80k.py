r"""Semantic FPN, pcpvt_base, 80k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train configs/mmseg/semantic_fpn_pcpvt_base_80k.py \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mmsegmentation's run of this recipe: mIoU 45.66 / 46.48 (one scale / six scales and flip; its model zoo). Not trained by
us yet: no duration measured.
"""

_base_ = "_base_/semantic_fpn_80k.py"

model = dict(backbone=dict(variant="pcpvt_base"), neck=dict(in_channels=[64, 128, 320, 512]))
