r"""UPerNet, svt_base, 160k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train configs/mmseg/upernet_svt_base_160k.py \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mmsegmentation's run of this recipe: mIoU 48.04 / 48.87 (one scale / six scales and flip; its model zoo). Not trained by
us yet: no duration measured.
"""

_base_ = "_base_/upernet_160k.py"

model = dict(
    backbone=dict(variant="svt_base"),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
