r"""UPerNet, pcpvt_base, 160k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train mmseg/upernet_pcpvt_base_160k \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mIoU of mmsegmentation's run of this recipe: 47.91 / 48.64 (one scale / six scales and flip; its model zoo). We have not
trained it yet, so there is no measured duration.
"""

_base_ = "_base_/upernet_160k.py"

model = dict(
    backbone=dict(variant="pcpvt_base"),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
