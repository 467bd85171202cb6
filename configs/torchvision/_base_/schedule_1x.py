"""The 1x schedule: 12 epochs, with the learning rate divided by 10 after epochs 8 and 11.

The linear warm-up takes 500 iterations, from 0.001 x the learning rate. At a batch size of 16, COCO's 117,266 images
with instances make 7,330 iterations per epoch, or 87,960 in total.
"""

train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4), clip_grad=None)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)
