"""Hooks for MMEngine's Runner: seeds, files of metrics, and checks of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce_params, get_rank, is_main_process, master_only
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ...evaluation import metrics_file
from ...seeds import derived_seed
from ..divergence import check_finite
from .checkpoints import unwrapped

# Keys in MMEngine's message hub, which checkpoints store.
EVALUATED = "evaluated_iter"  # the iteration after which the last evaluation took place
_CONTENT = "metrics_file"  # the arguments with which `metrics.json` was last written
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
    """Write `metrics.json` and `metrics.jsonl` to the work directory.

    `metrics.json` describes the last evaluation: its epoch and iteration, the losses at that time, and the metrics. In
    a run without evaluation, it is written after each epoch. `metrics.jsonl` has one line for each evaluation, and one
    with the losses, learning rate, times and memory at the interval of LoggerHook and at the end of each epoch.

    A resumed run starts with both files as they were at its checkpoint.
    """

    priority = "LOW"  # run after LoggerHook and the evaluator, whose values are written, and before CheckpointHook

    def before_train(self, runner: Runner) -> None:
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
        info, folder = runner.message_hub.runtime_info, Path(runner.work_dir)
        if not is_main_process():
            return
        if _CONTENT in info and runner.iter:
            metrics_file.write_metrics(folder, **info[_CONTENT])
        is_evaluated = info.get(EVALUATED) == runner.iter

        def keep(record: Mapping[str, Any]) -> bool:
            is_evaluation = "lr" not in record
            return record["iter"] < runner.iter + (is_evaluated if is_evaluation else 1)

        metrics_file.keep_records(folder, keep)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        is_last = runner.iter + 1 == runner.max_iters
        if not by_iterations(runner):
            is_last = self.end_of_epoch(runner.train_dataloader, batch_idx)
        if is_last or (runner.iter + 1) % self.interval == 0:
            values, _ = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")  # in all processes
            self._append(runner, runner.iter + 1, runner.epoch + 1, values)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        values = as_fractions(metrics or {})
        self._write(runner, runner.epoch, values)
        self._append(runner, runner.iter, runner.epoch, values)
        runner.message_hub.update_info(EVALUATED, runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        if runner.val_loop is None:
            self._write(runner, runner.epoch + 1, {})

    def _write(self, runner: Runner, epoch: int, metrics: dict[str, float]) -> None:
        losses = {
            name.removeprefix("train/"): float(history.current())
            for name, history in runner.message_hub.log_scalars.items()
            if name.startswith("train/") and "loss" in name
        }
        content = {"metrics": metrics, "iteration": runner.iter, "losses": losses}
        if not by_iterations(runner):  # MMEngine treats training by iterations as one epoch
            content["epoch"] = epoch
        runner.message_hub.update_info(_CONTENT, content)
        if is_main_process():
            metrics_file.write_metrics(Path(runner.work_dir), **content)

    @master_only
    def _append(self, runner: Runner, iteration: int, epoch: int, values: Mapping[str, float]) -> None:
        position = {"iter": iteration} if by_iterations(runner) else {"epoch": epoch, "iter": iteration}
        metrics_file.append_record(Path(runner.work_dir), {**position, **values, **position})


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
