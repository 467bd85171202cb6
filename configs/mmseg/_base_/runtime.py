"""Logging, checkpoints and seeds."""

default_scope = "mmseg"
custom_imports = dict(imports=["twins_dense.frameworks.mmengine.segmentors"], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook", by_epoch=False, interval=4000, max_keep_ckpts=3, backend_args=dict(backend="atomic")
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
# `twins-dense train` adds these hooks and the checkpoint backend itself; mmsegmentation's own tools need them here.
custom_hooks = [dict(type="IterationSeedHook"), dict(type="PlainCheckpointHook"), dict(type="MetricsFileHook")]
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
log_processor = dict(by_epoch=False)
sync_bn = "torch"  # converts BatchNorm to SyncBatchNorm for training on several GPUs
randomness = dict(seed=0)
log_level = "INFO"
load_from = None  # a checkpoint of the same model
init = None  # a checkpoint of the same model for other classes
