"""The console output of MMEngine's Runner: progress, evaluations and warnings; everything else is for the log file."""

from __future__ import annotations

import logging
import time
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ..console import ForwardHandler, Progress, duration, evaluation_table, logger, short_path
from .hooks import as_fractions, by_iterations

_WINDOW = 20  # iterations over which the loss is averaged
# MMEngine warns of these in ordinary runs: metrics have no prefix, our loop resumes without reading the data that it
# says it skips, and a process runs a segmentor after a detector.
_ORDINARY = ("The prefix is not set in metric class", "Advance dataloader ", "The current default scope ")
_FROZEN = "is skipped since its requires_grad=False"  # one warning per parameter that the user has frozen


class LogFileRunner(Runner):
    """MMEngine's Runner, but its log goes to the log file only; the console shows the warnings in it."""

    def build_logger(self, *arguments: Any, **options: Any) -> MMLogger:
        """Build the logger before anything is logged."""
        log = super().build_logger(*arguments, **options)
        only_warnings_on_console(log)
        return log

    def build_train_loop(self, loop: Any) -> BaseLoop:
        """Build a loop that counts epochs as one that can resume in the middle of an epoch."""
        if isinstance(loop, dict) and loop.get("by_epoch"):
            loop = {"type": "ResumableEpochLoop", **{key: value for key, value in loop.items() if key != "by_epoch"}}
        return super().build_train_loop(loop)


def only_warnings_on_console(log: MMLogger) -> None:
    """Replace the stream handler of an MMEngine logger by one that passes warnings to our logger."""
    for index, handler in enumerate(log.handlers):
        if type(handler) is logging.StreamHandler:
            forward = ForwardHandler(max(handler.level, logging.WARNING))  # MMEngine's level is higher in other ranks
            forward.filters = [*handler.filters, _is_unusual]
            log.handlers[index] = forward


def _is_unusual(record: logging.LogRecord) -> bool:
    message = str(record.msg)
    return not message.startswith(_ORDINARY) and _FROZEN not in message


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Log the start of a run, its progress at intervals of time, and a table for each evaluation."""

    priority = "LOWEST"  # after the best checkpoint is chosen

    def before_train(self, runner: Runner) -> None:
        loop, loader = runner.train_loop, runner.train_dataloader
        batch_size = loader.batch_size * get_world_size()
        if by_iterations(runner):
            length = _count(loop.max_iters, "iteration")
        else:
            length = f"{_count(loop.max_epochs, 'epoch')} of {_count(len(loader), 'iteration')}"
        where = f", resumed after iteration {runner.iter}" if runner.iter else ""
        logger.info(f"training on {_count(len(loader.dataset), 'image')}: {length}, batch size {batch_size}{where}")
        logger.info(f"log file: {short_path(runner.logger.log_file)}")
        self.progress = Progress(loop.max_iters, runner.iter)
        self.best = runner.message_hub.runtime_info.get("best_ckpt")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loop = runner.train_loop
        if by_iterations(runner):
            position = f"iter {runner.iter + 1}/{loop.max_iters}"
        else:
            position = (
                f"epoch {runner.epoch + 1}/{loop.max_epochs}  iter {batch_idx + 1}/{len(runner.train_dataloader)}"
            )

        def values() -> dict[str, float]:
            hub = runner.message_hub  # the optimiser has the learning rate of the next iteration by now
            loss, rate = hub.get_scalar("train/loss").mean(_WINDOW), hub.get_scalar("train/lr").current()
            return {"loss": float(loss), "lr": float(rate)}

        self.progress.update(runner.iter + 1, position, values)

    def before_val(self, runner: Runner) -> None:
        self.progress.pause()

    def before_val_epoch(self, runner: Runner) -> None:
        self._start(len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.evaluation.update(batch_idx + 1, f"evaluation  batch {batch_idx + 1}/{self.evaluation.total}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        where = f"iteration {runner.iter}" if by_iterations(runner) else f"epoch {runner.epoch}"
        logger.info(f"evaluation after {where}: {self._size_of(runner.val_dataloader)}")
        logger.info(evaluation_table(as_fractions(metrics or {})))
        best = runner.message_hub.runtime_info.get("best_ckpt")
        if best != self.best:
            self.best = best
            logger.info(f"best so far: {_describe_best(runner)}")

    def after_val(self, runner: Runner) -> None:
        self.progress.resume()

    def after_train(self, runner: Runner) -> None:
        if runner.train_loop.stop_training and runner.iter < runner.max_iters:
            logger.info("stopped early: the last evaluations gave no better score")
        if self.best:
            logger.info(f"best checkpoint: {_describe_best(runner)}")

    def before_test_epoch(self, runner: Runner) -> None:
        self._start(len(runner.test_dataloader))

    after_test_iter = after_val_iter

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        logger.info(f"evaluation: {self._size_of(runner.test_dataloader)}")

    def _start(self, num_batches: int) -> None:
        self._started = time.monotonic()
        self.evaluation = Progress(num_batches, last_line=False)

    def _size_of(self, loader: Any) -> str:
        return f"{_count(len(loader.dataset), 'image')} in {duration(time.monotonic() - self._started)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _describe_best(runner: Runner) -> str:
    """Return the path of the best checkpoint and its score, which a run that was resumed without a metric lacks."""
    metrics = next(hook.save_best for hook in runner.hooks if isinstance(hook, CheckpointHook))
    info = runner.message_hub.runtime_info
    if not metrics:
        return short_path(info["best_ckpt"])
    (metric,) = metrics
    (score,) = as_fractions({metric: info["best_score"]}).values()
    return f"{short_path(info['best_ckpt'])} with {metric} {score:.3f}"
