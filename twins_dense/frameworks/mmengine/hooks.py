"""Hooks for MMEngine's Runner: seeds, `metrics.json`, checks of the losses, and progress bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce_params, get_rank, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from tqdm import tqdm

from ...seeds import derived_seed
from .. import metrics_file
from ..divergence import check_finite
from .checkpoints import PlainCheckpointHook, unwrapped

# mmsegmentation's IoUMetric reports these in percent, rounded to two decimals.
_PERCENT = ("aAcc", "mAcc", "mDice", "mFscore", "mIoU", "mPrecision", "mRecall")


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed torch before each iteration from the seed of the run, the iteration and the rank.

    Stochastic depth and the sampling of proposals then continue after a resume as if the run had not stopped.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(derived_seed(runner.seed, runner.iter, get_rank()))


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Write the latest losses and validation metrics to `metrics.json` after each epoch and each validation."""

    priority = "LOW"  # run after LoggerHook and the evaluator, whose values are written

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        if runner.iter:  # keep the metrics from before the resume
            self.metrics = metrics_file.read_metrics(Path(runner.work_dir))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = as_fractions(metrics or {})
        self._write(runner, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        self._write(runner, runner.epoch + 1)

    @master_only
    def _write(self, runner: Runner, epoch: int) -> None:
        losses = {
            name.removeprefix("train/"): float(history.current())
            for name, history in runner.message_hub.log_scalars.items()
            if name.startswith("train/") and "loss" in name
        }
        metrics_file.write_metrics(
            Path(runner.work_dir),
            self.metrics,
            epoch=None if _by_iterations(runner) else epoch,  # MMEngine treats training by iterations as one epoch
            iteration=runner.iter,
            losses=losses,
        )


class FiniteLossHook(Hook):
    """Stop a run if a loss is not finite, before it reaches the parameters and the checkpoints."""

    def before_train(self, runner: Runner) -> None:
        def check(model: nn.Module, inputs: Any, outputs: Any) -> None:
            if model.training and isinstance(outputs, Mapping):
                parse_losses: Any = unwrapped(runner.model).parse_losses
                _, values = parse_losses(outputs)
                # MMEngine recognises losses by their names; other values, such as accuracies, need not be finite.
                losses = {name: value for name, value in values.items() if name in outputs and "loss" in name}
                check_finite(losses, runner.iter, "optim_wrapper.optimizer.lr")

        runner.model.register_forward_hook(check)


class AverageBuffersHook(Hook):
    """Average buffers, such as BatchNorm's statistics, over all processes after each iteration.

    MMEngine's SyncBuffersHook does so only at the end of an epoch, so a checkpoint from the middle of an epoch would
    differ from the model that is validated. With SyncBatchNorm, the buffers are equal anyway.
    """

    priority = "VERY_HIGH"  # before a checkpoint is saved

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        all_reduce_params([buffer for buffer in runner.model.buffers() if buffer.is_floating_point()], op="mean")


class ProgressBarHook(Hook):
    """Show a progress bar for each epoch, or for all iterations, on the first rank if the output is a terminal."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def _start(self, mode: str, title: str, total: int, done: int = 0) -> None:
        disable = None if is_main_process() else True
        self.bars[mode] = tqdm(total=total, initial=done, desc=title, unit="batch", leave=False, disable=disable)

    def before_train_epoch(self, runner: Runner) -> None:
        if _by_iterations(runner):
            self._start("train", "training", runner.max_iters, runner.iter)
        else:
            title = f"epoch {runner.epoch + 1} of {runner.max_epochs}"
            self._start("train", title, len(runner.train_dataloader))

    def before_val_epoch(self, runner: Runner) -> None:
        self._start("val", "validation", len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        self._start("test", "evaluation", len(runner.test_dataloader))

    # The train, val and test callbacks of the base class all call these two methods, which are meant to be overridden.
    def _after_iter(self, runner: Runner, *args: Any, mode: str = "train", **kwargs: Any) -> None:
        self.bars[mode].update()

    def _after_epoch(self, runner: Runner, mode: str = "train") -> None:
        self.bars.pop(mode).close()


def register_needed_hooks(runner: Runner) -> None:
    """Register the hooks that every run needs, except those that the config has already registered."""
    needed = [IterationSeedHook, PlainCheckpointHook, MetricsFileHook, ProgressBarHook, FiniteLossHook]
    if runner.distributed:
        needed.append(AverageBuffersHook)
    for hook in needed:
        if not any(isinstance(registered, hook) for registered in runner.hooks):
            runner.register_hook(hook())


def as_fractions(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as Python floats, with mmsegmentation's percentages converted to fractions.

    Values are converted through strings, so that mmsegmentation's float32 value 59.3 becomes 0.593.
    """
    values = {name: float(str(value)) for name, value in metrics.items()}
    return {name: round(value / 100, 6) if name in _PERCENT else value for name, value in values.items()}


def _by_iterations(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)
