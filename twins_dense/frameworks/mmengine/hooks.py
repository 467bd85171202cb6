"""MMEngine components that make runs repeatable, resumable and readable; registered by importing this module."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce_params, get_rank, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from tqdm import tqdm

from ...atomic import write_atomically
from ...seeds import derived_seed
from ..divergence import check_finite


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed torch before each iteration from the run's seed, the iteration and the rank.

    Stochastic depth and the sampling of proposals then go on after a resume as they would have without the stop.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(derived_seed(runner.seed, runner.iter, get_rank()))


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Write `metrics.json` into the work directory: after each epoch the last losses, each validation its metrics."""

    priority = "LOW"  # after LoggerHook's and the evaluator's values are there

    def __init__(self) -> None:
        self.metrics: dict[str, float | None] = {}

    def before_train(self, runner: Runner) -> None:
        path = Path(runner.work_dir) / "metrics.json"
        if runner.iter and path.is_file():  # a run that goes on keeps its metrics until there are newer ones
            self.metrics = json.loads(path.read_bytes()).get("metrics", {})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = json_numbers(plain_numbers(metrics or {}))
        self._write(runner, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        self._write(runner, runner.epoch + 1)

    @master_only
    def _write(self, runner: Runner, epoch: int) -> None:
        scalars = runner.message_hub.log_scalars
        losses = {
            name.removeprefix("train/"): float(history.current())
            for name, history in scalars.items()
            if name.startswith("train/") and "loss" in name
        }
        # Training by iterations is a single epoch to MMEngine.
        position = {"iter": runner.iter} if _by_iterations(runner) else {"epoch": epoch, "iter": runner.iter}
        content = {**position, "losses": losses, "metrics": self.metrics}
        write_atomically(Path(runner.work_dir) / "metrics.json", json.dumps(content, indent=2).encode() + b"\n")


class FiniteLossHook(Hook):
    """Stops a run at a loss that is not finite, before it reaches the parameters and the checkpoints."""

    def before_train(self, runner: Runner) -> None:
        def check(model: nn.Module, inputs: Any, outputs: Any) -> None:
            if model.training and isinstance(outputs, Mapping):
                _, values = _unwrapped(runner).parse_losses(outputs)
                # Names tell what is a loss; of what is none, such as the accuracy, MMEngine lets anything pass.
                losses = {name: value for name, value in values.items() if name in outputs and "loss" in name}
                check_finite(losses, runner.iter, "optim_wrapper.optimizer.lr")

        runner.model.register_forward_hook(check)


class SyncBuffersHook(Hook):
    """Let every process have the same buffers after each iteration: BatchNorm's statistics, averaged.

    What is validated is then what is saved. With SyncBatchNorm they are equal already.
    """

    priority = "VERY_HIGH"  # before a checkpoint is saved

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        all_reduce_params([buffer for buffer in runner.model.buffers() if buffer.is_floating_point()], op="mean")


class InitialStateHook(Hook):
    """Start training from a state dict that fits the model, after MMEngine has initialised it.

    MMEngine itself would load what has the same name and shape, and leave out the rest.
    """

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def before_train(self, runner: Runner) -> None:
        _unwrapped(runner).load_state_dict(self.state)


class ProgressBarHook(Hook):
    """A bar over the batches of each epoch, or all iterations, on terminals and on the first rank only."""

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

    def _after_iter(self, runner: Runner, *args: Any, mode: str = "train", **kwargs: Any) -> None:
        self.bars[mode].update()

    def _after_epoch(self, runner: Runner, mode: str = "train") -> None:
        self.bars.pop(mode).close()


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as Python's floats; by way of text, so that mmseg's 59.3 in float32 stays 59.3."""
    return {name: float(str(value)) for name, value in metrics.items()}


def json_numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: null stands for a metric of a class without an instance."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _unwrapped(runner: Runner) -> Any:
    """The model without DistributedDataParallel around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _by_iterations(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)
