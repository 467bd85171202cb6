"""80,000 iterations of AdamW, with polynomial decay.

At a batch size of 32, the schedule covers ADE20K's 20,210 training images 127 times.
"""

train_cfg = dict(type="ResumableIterLoop", max_iters=80000, val_interval=8000)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4), clip_grad=None)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)]
auto_scale_lr = dict(enable=True, base_batch_size=32)
