"""Logging, checkpoints and seeds. `twins-dense train` adds the hooks that exact resuming needs."""

default_scope = "mmengine"
custom_imports = dict(imports=["twins_dense.frameworks.mmengine.detectors"], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
randomness = dict(seed=0)
log_level = "INFO"
load_from = None  # a checkpoint of the same model
init = None  # a checkpoint of the same model for other classes
