"""Train and evaluate a config with MMEngine's Runner."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from ... import stopping
from ...atomic import write_atomically
from ...errors import TwinsError
from ...evaluation import metrics_file
from ...evaluation.record import check_unrecorded
from .. import checks
from ..console import logger
from ..optimizer_state import check_optimizer_state
from ..work_dir import for_evaluation, for_training, last_checkpoint
from . import silence_deprecations
from .checkpoints import (
    InitialStateHook,
    PlainCheckpointHook,
    dataset_meta,
    read_for_config,
    read_for_model,
    silent_log,
    unwrapped,
)
from .config import (
    building,
    check_settings,
    guarded,
    model_of,
    set_max_dets_of_metric,
    settings_called,
    test_part,
    without_initial_weights,
    without_run_settings,
)
from .console import ConsoleHook, LogFileRunner, only_warnings_on_console
from .hooks import AverageBuffersHook, FiniteLossHook, IterationSeedHook, MetricsFileHook, as_fractions
from .monitoring import check_average, without_training_hooks
from .recording import Recording, obstacle, warn_of_obstacle
from .resuming import EvaluatedCheckpointHook, ResumedEvaluationHook, StopHook
from .transfer import read_for_transfer

_GLOO_WRAPPER = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}


def train(
    config: Config, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
) -> Runner:
    """Train a config, with one process per device under torchrun.

    `work_dir` receives the resolved config, checkpoints (`epoch_N.pth` or `iter_N.pth`, and `last_checkpoint`),
    `metrics.json`, and a folder with the log and the logged scalars, named after the start time.

    Args:
        config: Config from `load_config`; it is changed in place to the config that is run.
        work_dir: A new folder, or the folder of an earlier run if `resume` is true.
        resume: Whether to continue from the last checkpoint in `work_dir`.
        launch: Options of detectron2's launcher, which raise an error here.

    Returns:
        The Runner at the end of training.

    Raises:
        TwinsError: if the config, the data, a checkpoint or the folder cannot be used.
    """
    _refuse(launch)
    work_dir = for_training(work_dir, resume)
    config.work_dir = str(work_dir)
    config.resume = resume
    check_settings(config)
    _prepare(config)
    config.model = model_of(config)  # an evaluation with test-time augmentation stores it with a wrapper
    initial, resumed = None, None
    if resume:
        last = last_checkpoint(work_dir)
        checkpoint = read_for_config(config, last)
        check_average(config, checkpoint, last)
        meta = checkpoint["meta"]
        _check_resumable(config, checkpoint)
        resumed = last, checkpoint.get("optimizer")
        config.randomness = {**config.get("randomness", {}), "seed": meta["seed"]}
        if is_main_process():  # MMEngine stores the whole path, but the folder may have been moved
            write_atomically(work_dir / "last_checkpoint", str(last).encode())
    elif config.get("load_from") and config.get("init"):
        raise TwinsError(
            f"load_from={config.load_from!r} and init={config.init!r}: a run can start from one of them only"
        )
    elif config.get("load_from"):
        initial = read_for_config(config, config.load_from)["state_dict"]
    with building(config), silent_log():
        MODELS.build(copy.deepcopy(config.model))
    datasets = _build_datasets(config, "train", "val")
    train_set = datasets["train"]
    checks.check_num_classes(
        train_set.source,
        len(train_set.metainfo["classes"]),
        dict(settings_called("num_classes", config.model, "model")),
    )
    for dataset in datasets.values():
        _check_categories(dataset, train_set.metainfo, "the training data")
    report = None
    if config.get("init") and not resume:
        initial, report = read_for_transfer(config, config.init, train_set.metainfo)
    with building(config):
        runner = _build_runner(config, datasets)
        if report is not None:
            for log in (logger, runner.logger):  # the console and the log file
                log.info(f"start from {report}")
        if initial is not None:
            runner.register_hook(InitialStateHook(initial))
        _rehearse(runner, resumed)
    with stopping.deferred():
        runner.train()
    return runner


def evaluate(
    config: Config, checkpoint: str | Path, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config, or on its validation data if it has no test data.

    The results of each image are recorded in `work_dir/record` (see `evaluation.record`). If the folder contains an
    unfinished record of the same evaluation, only the remaining images are computed.

    Returns:
        The metrics, with scores as fractions. They are also written to `work_dir/metrics.json`.

    Raises:
        TwinsError: if the config, the data or the checkpoint cannot be used, or if the folder contains another
            evaluation.
    """
    _refuse(launch)
    work_dir = for_evaluation(work_dir)
    config.work_dir = str(work_dir)
    config.resume = False
    config.custom_hooks = without_training_hooks(config)
    for part in ("dataloader", "evaluator", "cfg"):
        config[f"test_{part}"] = test_part(config, part)
    check_settings(config)
    _prepare(config)
    config.model = without_initial_weights(config).model
    state = read_for_config(config, checkpoint)
    (dataset,) = _build_datasets(config, "test").values()
    _check_categories(dataset, dataset_meta(state["meta"]), f"checkpoint {str(checkpoint)!r}")
    with building(config):
        evaluator = Runner.build_evaluator(None, copy.deepcopy(config.test_evaluator))  # it uses no attribute
    reason = obstacle(evaluator, dataset)
    if reason:
        check_unrecorded(work_dir)
        warn_of_obstacle(reason)
        found = _tested(config, dataset, evaluator, state)
    else:
        with Recording(config, checkpoint, dataset, evaluator, work_dir) as recording:
            found = recording.metrics() if recording.is_complete else _tested(config, recording, evaluator, state)
    metrics = as_fractions(found)
    if is_main_process():
        metrics_file.write_metrics(
            work_dir,
            metrics,
            epoch=state["meta"].get("epoch"),
            iteration=state["meta"].get("iter"),
            checkpoint=str(checkpoint),
            dataset=dataset.source,
        )
    return metrics


def _tested(config: Config, images: Any, evaluator: Evaluator, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a trained model on a data set, or on the images that remain in a recording."""
    recording = images if isinstance(images, Recording) else None
    with building(config):
        runner = _build_runner(config, {"test": recording.images if recording else images}, test_evaluator=evaluator)
    unwrapped(runner.model).load_state_dict(state["state_dict"])
    if recording:
        recording.agree()
        runner.register_hook(recording.hook)
    return runner.test()


def load_model(
    config: Config, checkpoint: str | Path, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load the model of a config with the weights of a checkpoint, in eval mode, on a device.

    Returns:
        The model, and the metadata of its data set from the checkpoint (`classes`, `category_ids`, …).
    """
    _prepare(config)
    config.model = without_initial_weights(config).model
    with building(config):
        model = MODELS.build(config.model)
        state = read_for_model(model, checkpoint)
    model.load_state_dict(state["state_dict"])
    return model.to(device).eval(), dataset_meta(state["meta"])


def check_data(config: Config) -> Iterator[str]:
    """Check the data sets of a config by building them one by one, and yield lines that describe them.

    Raises:
        TwinsError: for the first data set that cannot be used.
    """
    _prepare(config)
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is not None and not (split == "test" and loader == config.get("val_dataloader")):
            dataset = _build_datasets(config, split)[split]
            num_classes = len(dataset.metainfo["classes"])
            yield from checks.describe_data(split, dataset.source, len(dataset), num_classes, dataset.problems)


def _refuse(launch: Mapping[str, Any] | None) -> None:
    if launch:
        option = f"--{next(iter(launch)).replace('_', '-')}"
        raise TwinsError(
            f"{option} is for detectron2 configs only: run `torchrun --nproc_per_node=N -m twins_dense …` instead"
        )


@guarded
def _prepare(config: Config) -> None:
    """Run the custom imports of a config, and adapt it to the available devices and processes."""
    if config.get("model") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no model: use the config of a complete experiment")
    only_warnings_on_console(MMLogger.get_current_instance())  # until the runner has its own log
    imports = config.get("custom_imports")
    if imports is not None:
        import_modules_from_strings(**imports)
    init_default_scope(config.get("default_scope", "mmengine"))
    set_max_dets_of_metric(config)
    # MMEngine names loggers after the config and the second, which can be the same for two runs in one process.
    config.experiment_name = f"{Path(config.filename or 'run').stem}_{time.time_ns()}"
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is not None and not loader.get("num_workers"):
            loader.pop("persistent_workers", None)  # torch rejects it if there are no workers
    # By assignment: `setdefault` of MMEngine's configs returns a dict that is not the one in the config.
    config.default_hooks = {"checkpoint": {"type": "CheckpointHook"}, **config.get("default_hooks", {})}
    checkpoint_hook = config.default_hooks.checkpoint
    if checkpoint_hook is not None:
        checkpoint_hook.setdefault("backend_args", {"backend": "atomic"})
        if checkpoint_hook["type"] == "CheckpointHook":
            checkpoint_hook["type"] = EvaluatedCheckpointHook.__name__
    on_gpu = torch.cuda.is_available()
    in_torchrun = "RANK" in os.environ and "LOCAL_RANK" in os.environ
    config.launcher = "pytorch" if in_torchrun else "none"
    if not on_gpu:
        config.pop("sync_bn", None)  # torch's SyncBatchNorm needs a GPU
    if in_torchrun and not on_gpu:
        # MMEngine's own setup would select a CUDA device for the process and for DistributedDataParallel.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        config.model_wrapper_cfg = _GLOO_WRAPPER
    elif config.get("model_wrapper_cfg") == _GLOO_WRAPPER:  # from the config that another run has stored
        config.pop("model_wrapper_cfg")
    optim_wrapper = config.get("optim_wrapper")
    if optim_wrapper is not None and optim_wrapper.get("type") == "AmpOptimWrapper" and not on_gpu:
        print_log("No GPU: training in float32 instead of mixed precision", "current", logging.WARNING)
        optim_wrapper.type = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            optim_wrapper.pop(key, None)


def _check_resumable(config: Config, checkpoint: Mapping[str, Any]) -> None:
    meta = checkpoint["meta"]
    key, done = ("max_epochs", "epoch") if config.train_cfg.get("max_epochs") else ("max_iters", "iter")
    for name in (done, "seed"):
        if type(meta.get(name)) is not int:
            raise TwinsError(f"the last checkpoint has {name}={meta.get(name)!r} in its meta: it cannot be resumed")
    if not isinstance(checkpoint.get("message_hub"), Mapping):
        raise TwinsError("the last checkpoint has no message_hub, the logged values so far: it cannot be resumed")
    checks.check_resumable(done=meta[done], limit=config.train_cfg[key], limit_key=f"train_cfg.{key}")
    checks.check_batch_size(
        config.train_dataloader.get("batch_size"),
        meta.get("total_batch_size"),
        key="train_dataloader.batch_size",
        num_processes=int(os.environ.get("WORLD_SIZE", 1)) if config.launcher == "pytorch" else 1,
    )


def _build_datasets(config: Config, *splits: str) -> dict[str, Any]:
    """Build the data sets of the given splits; only the first split is required to be in the config."""
    if config.get(f"{splits[0]}_dataloader") is None:
        raise TwinsError(f"config {str(config.filename)!r} has no {splits[0]}_dataloader: it cannot run without data")
    with building(config):
        datasets = {
            split: DATASETS.build(copy.deepcopy(config[f"{split}_dataloader"].dataset))
            for split in splits
            if config.get(f"{split}_dataloader") is not None
        }
        for split, dataset in datasets.items():
            if not hasattr(dataset, "problems"):
                raise TwinsError(
                    f"{split}_dataloader.dataset.type={config[f'{split}_dataloader'].dataset.type!r} does not check "
                    "its files: use CocoDetectionDataset, twins_dense.SegmentationDataset or a subclass of one of them"
                )
    return datasets


def _build_runner(config: Config, datasets: Mapping[str, Any], **others: Any) -> Runner:
    """Build a Runner as `Runner.from_cfg` does, but with existing data sets; log what they left out.

    Args:
        config: The config.
        datasets: Data sets by split.
        others: Arguments of the Runner that replace those in the config.
    """
    arguments = {name: config[name] for name in inspect.signature(Runner).parameters if name in config}
    arguments.pop("load_from", None)  # `train` loads it strictly; MMEngine would even resume from it
    for split, dataset in datasets.items():
        arguments[f"{split}_dataloader"] = {**config[f"{split}_dataloader"], "dataset": dataset}
    runner = LogFileRunner(**{**arguments, **others}, cfg=without_run_settings(config))
    silence_deprecations(runner.logger)
    for dataset in datasets.values():
        if dataset.problems:
            # Use an f-string: MMEngine's logger drops repeated format strings, and several data sets may warn.
            lines = "\n".join(dataset.problems)
            runner.logger.warning(f"Left out, {len(dataset.problems)} in all:\n{lines}")
    _register_needed_hooks(runner)
    return runner


def _register_needed_hooks(runner: Runner) -> None:
    """Register the hooks that every run needs, except those that the config has already registered."""
    needed = [
        IterationSeedHook,
        PlainCheckpointHook,
        MetricsFileHook,
        ConsoleHook,
        FiniteLossHook,
        ResumedEvaluationHook,
        StopHook,
    ]
    if runner.distributed:
        needed.append(AverageBuffersHook)
    for hook in needed:
        if not any(isinstance(registered, hook) for registered in runner.hooks):
            runner.register_hook(hook())


def _rehearse(runner: Runner, resumed: tuple[Path, Any] | None) -> None:
    """Build the loops, the optimiser and the schedulers early, so that errors in them show before training starts.

    `Runner.train` builds the optimiser and the schedulers again.

    Args:
        runner: The Runner.
        resumed: Path of the checkpoint to resume from and the state of its optimiser, which is checked as well.
    """
    runner.train_loop, runner.val_loop  # noqa: B018  (properties that build)
    configured = runner.optim_wrapper
    runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(configured))
    if resumed is not None and isinstance(runner.optim_wrapper, OptimWrapper):
        path, state = resumed
        check_optimizer_state(runner.optim_wrapper.optimizer, state, path)
    if runner.param_schedulers is not None:
        runner.build_param_scheduler(copy.deepcopy(runner.param_schedulers))
    runner.optim_wrapper = configured


def _check_categories(dataset: Any, expected: Mapping[str, Any], other_source: str) -> None:
    if "classes" not in expected:
        return
    wanted = {"reduce_zero_label": dataset.metainfo.get("reduce_zero_label"), **expected}
    checks.check_categories(dataset.source, _categories(dataset.metainfo), other_source, _categories(wanted))


def _categories(metainfo: Mapping[str, Any]) -> list[str]:
    """Return each class name, preceded by its number in the files."""
    first = 1 if metainfo.get("reduce_zero_label") else 0
    ids = metainfo.get("category_ids") or range(first, first + len(metainfo["classes"]))
    return [f"{i} {name}" for i, name in zip(ids, metainfo["classes"], strict=True)]
