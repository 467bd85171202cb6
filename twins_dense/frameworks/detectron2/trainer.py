"""Train a config with detectron2's trainer, in one or several processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import AMPTrainer, SimpleTrainer, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from omegaconf import DictConfig

from ... import stopping
from ...errors import TwinsError, one_line
from ..divergence import diverged
from ..optimizer_state import check_optimizer_state
from ..work_dir import for_training, last_checkpoint
from .averaging import WeightAverage
from .backbone import logger
from .checks import check_classes, check_overlap, check_resumable, dataset_name_of
from .config import check_settings
from .console import ConsoleHook
from .data import PositionSampler
from .guards import building
from .hooks import LEARNING_RATE, EarlyStop, ExactResume, FiniteLosses, RunCheckpointer, StopOnRequest
from .launch import launch_run, set_up
from .monitoring import Monitor, choose_best, monitoring_of
from .solver import clip_gradients
from .stored import stored_record
from .transfer import load_for_transfer
from .validation import Validation


def train(
    config: DictConfig, work_dir: str | Path, *, resume: bool = False, launch: Mapping[str, Any] | None = None
) -> None:
    """Train a config, in one process or in the processes that `launch` specifies.

    `work_dir` receives `config.yaml`, `log.txt`, checkpoints (`model_*.pth` and `last_checkpoint`), the best checkpoint
    (`model_best.pth`), `metrics.json`, `metrics.jsonl` (one line per logging period and per evaluation), pictures of
    predictions (`samples`) and, if `train.monitoring` asks for them, TensorBoard events.

    Args:
        config: Config from `load_config`; it is changed in place to the config that is run.
        work_dir: A new folder, or the folder of an earlier run if `resume` is true.
        resume: Whether to continue from the last checkpoint in `work_dir`.
        launch: Arguments of detectron2's `launch`, with these defaults: `num_gpus` 1, `num_machines` 1, `machine_rank`
            0 and `dist_url` "auto". Without a GPU, `num_gpus` is the number of processes.

    Raises:
        TwinsError: if the config, the data, a checkpoint or the folder cannot be used, or a loss is not finite.
    """
    work_dir = for_training(work_dir, resume)
    config.train.output_dir = str(work_dir)
    launch_run(_train, launch, config, resume)


def _train(config: DictConfig, resume: bool) -> None:
    """Run training in one of the processes."""
    check_settings(config)
    settings, options = config.train, monitoring_of(config)
    with building(config):
        set_up(config)
        loader = instantiate(config.dataloader.train)
        model = instantiate(config.model).to(settings.device)
        dataset_meta = check_classes(config, model, dataset_name_of(config.dataloader.train))
        stored = stored_record(config)
    sampler = getattr(loader.dataset, "sampler", None)
    if not isinstance(sampler, PositionSampler):
        sampler = None
        logger.warning("The training loader is not from build_train_loader: its order restarts after a resume")
    _scale_learning_rate(config, len(sampler.is_wide) if sampler else None)
    last, state = None, None
    if resume:
        last = last_checkpoint(Path(settings.output_dir))
        state = check_resumable(last, model, config)
    elif settings.init:
        load_for_transfer(model, settings.init, dataset_meta["classes"])
    elif settings.init_checkpoint:
        check_overlap(settings.init_checkpoint, model)

    with building(config):
        config.optimizer.params.model = model
        optimizer = instantiate(config.optimizer)
        if settings.clip_norm:
            clip_gradients(optimizer, settings.clip_norm)
        scheduler = instantiate(config.lr_multiplier)
    if last is not None:
        check_optimizer_state(optimizer, state, last)
    average = WeightAverage(model) if options.ema else None
    saved_model = model if average is None else average.model  # it is also the model that is evaluated
    validation, best = None, None
    if settings.eval_period > 0:
        validation = Validation(config, saved_model, with_losses=options.val_loss, num_samples=options.samples)
        best = choose_best(options, model, validation.evaluator, dataset_meta["classes"])
    ddp = {} if settings.device != "cpu" else {"device_ids": None}
    model = create_ddp_model(model, **settings.ddp, **ddp)
    if settings.amp.enabled:
        # bfloat16 has the same range as float32, so only float16 needs loss scaling.
        dtype = getattr(torch, settings.amp.dtype)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        trainer: SimpleTrainer = AMPTrainer(model, loader, optimizer, grad_scaler=scaler, precision=dtype)
    else:
        trainer = SimpleTrainer(model, loader, optimizer)
    facts = {"dataset_meta": dataset_meta, "total_batch_size": config.dataloader.train.total_batch_size, **stored}
    checkpointer = RunCheckpointer(model, settings.output_dir, facts, saved_model=saved_model, trainer=trainer)
    periodic = hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    if resume:  # tell it about the earlier checkpoints, which it has to remove later
        earlier = Path(settings.output_dir).glob(f"model_{'[0-9]' * 7}.pth")
        periodic.recent_checkpoints = [str(path) for path in sorted(earlier)]
    is_main = comm.is_main_process()
    periods = [period for period in (settings.checkpointer.period, settings.eval_period) if period]
    exact = ExactResume(sampler, settings.seed, periods)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            ConsoleHook(Path(settings.output_dir)) if is_main else None,
            FiniteLosses(),
            exact,
            average,
            periodic if is_main else None,
            Monitor(settings, validation, checkpointer, best, options),
            StopOnRequest(checkpointer, exact),
        ]
    )
    checkpointer.resume_or_load(settings.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume else 0
    try:
        # After a few calls, TorchScript optimises RetinaNet's focal loss, which changes its last bits. Prevent this on
        # the CPU, so that a resumed run has the same bits.
        with torch.jit.optimized_execution(settings.device != "cpu"), stopping.deferred():
            trainer.train(start, settings.max_iter)
    except EarlyStop:
        logger.info(f"stopped: {options.patience} evaluations have brought no better {best}")
    except FloatingPointError:  # from Mask R-CNN's proposals, which detectron2 checks before it returns the losses
        what = "loss_rpn_cls or loss_rpn_loc (scores or boxes of proposals)"
        raise diverged(trainer.iter, what, LEARNING_RATE) from None
    except SizeMismatchError as error:
        raise TwinsError(one_line(error)) from None


def _scale_learning_rate(config: DictConfig, num_images: int | None) -> None:
    """Scale the learning rate with the batch size, and log the change and the length of the run in epochs."""
    scaling, batch_size = config.train.auto_scale_lr, config.dataloader.train.total_batch_size
    base = scaling.base_batch_size
    if scaling.enabled and batch_size != base:
        before, config.optimizer.lr = config.optimizer.lr, config.optimizer.lr * batch_size / base
        logger.info(
            f"Learning rate scaled with the batch size: {before:g} x {batch_size} / {base} = {config.optimizer.lr:g} "
            "(train.auto_scale_lr.enabled=False keeps it)"
        )
    if num_images:
        iterations = config.train.max_iter
        logger.info(
            f"{iterations} iterations of {batch_size} images are {iterations * batch_size / num_images:.2f} epochs "
            f"of {num_images} images"
        )
