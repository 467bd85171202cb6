"""3x: 36 epochs, a tenth of the learning rate after epochs 27 and 33, the same warm-up as 1x, no weight decay on norms
and positional encodings.

At a batch size of 16, COCO's 117,266 images with instances are 7,330 iterations per epoch, 263,880 in all.
"""

train_cfg = dict(by_epoch=True, max_epochs=36, val_interval=1)
optim_wrapper = dict(
    type="AmpOptimWrapper",  # float32 if there is no GPU
    dtype="bfloat16",  # the published runs used float16, which needs loss scaling
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
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
    # Half of the images are first resized and cropped to 384-600 pixels; all are then resized to a short side.
    dict(
        type="RandomApply",
        p=0.5,
        transforms=[
            dict(type="RandomShortestSize", min_size=[400, 500, 600], max_size=1333),
            dict(type="RandomRangeCrop", min_size=384, max_size=600),
        ],
    ),
]
