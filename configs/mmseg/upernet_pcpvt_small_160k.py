r"""UPerNet, pcpvt_small, 160k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train mmseg/upernet_pcpvt_small_160k \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mIoU of mmsegmentation's run of this recipe: 46.04 / 46.92 (one scale / six scales and flip; its model zoo). We have not
trained it yet, so there is no measured duration.
"""

_base_ = "_base_/upernet_160k.py"

model = dict(
    backbone=dict(variant="pcpvt_small"),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)

# Of all variants, this one was trained with a batch of 32.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
