"""The 1x and 3x schedules in iterations, with a linear warm-up over 500 iterations from 0.001 x the learning rate."""

import torch
from detectron2.config import LazyCall as L

from twins_dense.frameworks.detectron2.backbone import optimizer_params
from twins_dense.frameworks.detectron2.solver import multi_step_lr

# COCO has 117,266 training images with instances; at a batch size of 16 that is 7,329.1 batches, rounded up.
ITERATIONS_PER_EPOCH = 7_330

_train = dict(
    output_dir=None,  # set by each experiment
    init_checkpoint="",  # checkpoint of a complete detector
    seed=0,
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
    checkpointer=dict(period="${train.iterations_per_epoch}", max_to_keep=3),
    eval_period="${train.iterations_per_epoch}",
    log_period=20,
    device="cuda",  # twins-dense falls back to the CPU if there is no GPU
    # Only twins-dense reads these.
    init=None,  # checkpoint of the same detector for other classes
    iterations_per_epoch=ITERATIONS_PER_EPOCH,  # --data, --batch and --epochs change it, and max_iter with it
    auto_scale_lr=dict(enabled=True, base_batch_size=16),
    clip_norm=None,  # largest norm of the gradient of all parameters together
)

# 12 epochs x 7,330 = 87,960 iterations; the learning rate is divided by 10 after epochs 8 and 11.
train_1x = dict(_train, max_iter=12 * ITERATIONS_PER_EPOCH, amp=dict(enabled=False, dtype="bfloat16"))
lr_multiplier_1x = L(multi_step_lr)(max_iter="${train.max_iter}", milestones=[8 / 12, 11 / 12], warmup_iters=500)
optimizer_1x = L(torch.optim.AdamW)(
    params=L(optimizer_params)(no_decay=[]), lr=1e-4, betas=[0.9, 0.999], weight_decay=1e-4
)

# 36 epochs x 7,330 = 263,880 iterations; the learning rate is divided by 10 after epochs 27 and 33. The published
# runs used float16, as does detectron2's own training script, which has no setting for the dtype.
train_3x = dict(_train, max_iter=36 * ITERATIONS_PER_EPOCH, amp=dict(enabled=True, dtype="bfloat16"))
lr_multiplier_3x = L(multi_step_lr)(max_iter="${train.max_iter}", milestones=[27 / 36, 33 / 36], warmup_iters=500)
optimizer_3x = L(torch.optim.AdamW)(
    params=L(optimizer_params)(no_decay=["pos_block", "norm"]), lr=1e-4, betas=[0.9, 0.999], weight_decay=0.05
)
