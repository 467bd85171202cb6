"""160,000 iterations of AdamW, with a linear warm-up over 1,500 iterations and then a linear decay to zero.

Norms and positional encodings have no weight decay. At a batch size of 16, the schedule covers ADE20K's 20,210 training
images 127 times.
"""

train_cfg = dict(type="ResumableIterLoop", max_iters=160000, val_interval=16000)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=None,
    paramwise_cfg=dict(custom_keys={"pos_block": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)
