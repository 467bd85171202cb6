"""Hooks for MMEngine's Runner: seeds, `metrics.json`, and checks of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce_params, get_rank, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ...seeds import derived_seed
from .. import metrics_file
from ..divergence import check_finite
from .checkpoints import unwrapped

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
            epoch=None if by_iterations(runner) else epoch,  # MMEngine treats training by iterations as one epoch
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


def as_fractions(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as Python floats, with mmsegmentation's percentages converted to fractions.

    Values are converted through strings, so that mmsegmentation's float32 value 59.3 becomes 0.593.
    """
    values = {name: float(str(value)) for name, value in metrics.items()}
    return {name: round(value / 100, 6) if name in _PERCENT else value for name, value in values.items()}


def by_iterations(runner: Runner) -> bool:
    """Return whether a run counts iterations instead of epochs."""
    return isinstance(runner.train_loop, IterBasedTrainLoop)
