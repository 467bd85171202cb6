"""What every run does: log, save whole checkpoints, seed so that a resumed run goes on as if it had not stopped."""

default_scope = "mmengine"
custom_imports = dict(imports=["twins_dense.frameworks.mmengine.detectors"], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, backend_args=dict(backend="atomic")),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [dict(type="IterationSeedHook"), dict(type="PlainCheckpointHook"), dict(type="MetricsFileHook")]
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
randomness = dict(seed=0)
log_level = "INFO"
load_from = None
