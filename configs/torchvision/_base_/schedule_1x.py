"""1x: 12 epochs, a tenth of the learning rate after epochs 8 and 11, linear warm-up over 500 iterations from x 0.001.

At a batch size of 16, COCO's 117,266 images with instances are 7,330 iterations per epoch, 87,960 in all.
"""

train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)
