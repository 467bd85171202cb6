"""The 3x schedule: 36 epochs, with the learning rate divided by 10 after epochs 27 and 33.

The warm-up is that of the 1x schedule. Norms and positional encodings have no weight decay. At a batch size of 16,
COCO's 117,266 images with instances make 7,330 iterations per epoch, or 263,880 in total.
"""

train_cfg = dict(by_epoch=True, max_epochs=36, val_interval=1)
optim_wrapper = dict(
    type="AmpOptimWrapper",  # float32 if there is no GPU
    dtype="bfloat16",  # the published runs used float16, which needs loss scaling
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=None,
    paramwise_cfg=dict(custom_keys={"pos_block": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, milestones=[27, 33], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)

_SHORT_SIDES = tuple(range(480, 801, 32))
_MULTI_SCALE_CROP = [
    dict(type="RandomHorizontalFlip", p=0.5),
    # Each image is first resized and cropped to 384-600 pixels with probability 0.5. The model then resizes all images.
    dict(
        type="RandomApply",
        p=0.5,
        transforms=[
            dict(type="RandomShortestSize", min_size=[400, 500, 600], max_size=1333),
            dict(type="RandomRangeCrop", min_size=384, max_size=600),
        ],
    ),
]
