r"""UPerNet, pcpvt_small, 160k iterations, ADE20K at 512x512, ImageNet weights.

torchrun --nproc_per_node=8 -m twins_dense train configs/mmseg/upernet_pcpvt_small_160k.py \
    --data-root data/ade/ADEChallengeData2016 model.backbone.weights=FILE

mmsegmentation's run of this recipe: mIoU 46.04 / 46.92 (one scale / six scales and flip; its model zoo). Not trained by
us yet: no duration measured.
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
