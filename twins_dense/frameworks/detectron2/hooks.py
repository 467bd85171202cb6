"""Hooks and a checkpointer for detectron2's trainer, which allow a run to be killed and resumed at any moment."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from torch import nn

from ...atomic import write_atomically
from ...seeds import derived_seed
from .. import metrics_file
from ..divergence import check_finite
from .data import PositionSampler

_COCO_TASKS = ("bbox", "segm", "keypoints")
LEARNING_RATE = "optimizer.lr"  # the key of the learning rate in a config


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, but its files appear whole or not at all.

    Args:
        model: The detector, possibly inside DistributedDataParallel.
        save_dir: The work directory.
        facts: Entries to store with the model: `dataset_meta` (`classes` and `category_ids`), which prediction needs,
            `total_batch_size`, which resuming needs, and the config as data, if it can be stored.
        checkpointables: Further objects whose state dicts are stored, such as the trainer.
    """

    def __init__(self, model: nn.Module, save_dir: str, facts: dict[str, Any], **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.facts = facts

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth, then write its name to `last_checkpoint`."""
        if not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        buffer = io.BytesIO()
        content = {"model": self.model.state_dict(), **states, **self.facts, **kwargs}
        torch.save(content, buffer)
        self.logger.info(f"Saving checkpoint to {self.save_dir}/{name}.pth")
        write_atomically(Path(self.save_dir) / f"{name}.pth", buffer.getvalue())
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of a file to `last_checkpoint`."""
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())


class ExactResume(HookBase):
    """Make a resumed run continue as if it had not stopped. Register this hook before the checkpointer.

    All randomness depends on the seed of the run and the iteration. RetinaNet's running mean of the number of positive
    anchors, which detectron2 leaves out of the state dict, is stored with the checkpoint.

    Args:
        sampler: Sampler of the training loader; `None` for a custom loader, whose order restarts after a resume.
        seed: Seed of the run.
        period: Number of iterations between checkpoints.
    """

    def __init__(self, sampler: PositionSampler | None, seed: int, period: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.period = period
        self.normalizers: list[float] | None = None  # one running mean per process, as in the last checkpoint

    def before_train(self) -> None:
        if self.sampler is not None:
            self.sampler.first_iteration = self.trainer.start_iter
        if self.normalizers is not None:
            self._model.loss_normalizer = self.normalizers[comm.get_rank() % len(self.normalizers)]
        # Creating the iterator draws from torch's generator once, so do it before the first iteration is seeded.
        # detectron2 has no public name for the iterator.
        iter(self.trainer._data_loader_iter)

    def before_step(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.trainer.iter, comm.get_rank()))

    def after_step(self) -> None:
        # All processes must call `all_gather`, although only the first one saves the checkpoint.
        is_saved = (self.trainer.iter + 1) % self.period == 0 or self.trainer.iter + 1 == self.trainer.max_iter
        if is_saved and hasattr(self._model, "loss_normalizer"):
            self.normalizers = comm.all_gather(float(self._model.loss_normalizer))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.normalizers is None else {"loss_normalizers": self.normalizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.normalizers = state["loss_normalizers"]

    @property
    def _model(self) -> Any:
        return getattr(self.trainer.model, "module", self.trainer.model)


class Evaluation(EvalHook):
    """detectron2's evaluation during and after training, skipped if the last iteration has failed.

    detectron2 would evaluate even then, and hang, because the processes would wait for each other.
    """

    def after_train(self) -> None:
        if sys.exc_info()[0] is None:
            super().after_train()


class MetricsFile(HookBase):
    """Write `metrics.json` at each checkpoint, after each evaluation and at the end.

    Args:
        folder: The work directory.
        period: Number of iterations between checkpoints.
    """

    def __init__(self, folder: Path, period: int) -> None:
        self.folder = folder
        self.period = period
        self.metrics: dict[str, float] = {}

    def record(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the results of an evaluation, which are empty in all processes but the first, and return them."""
        if results:
            self.metrics = as_fractions(results)
            self._write()
        return results

    def before_train(self) -> None:
        if self.trainer.start_iter:  # keep the metrics from before the resume
            self.metrics = metrics_file.read_metrics(self.folder)

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self._write()

    def after_train(self) -> None:
        if sys.exc_info()[0] is None and self.trainer.start_iter < self.trainer.max_iter:
            self._write()

    def _write(self) -> None:
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest()
        losses = {name: value for name, (value, _) in latest.items() if "loss" in name}
        iteration = min(self.trainer.iter + 1, self.trainer.max_iter)
        metrics_file.write_metrics(self.folder, self.metrics, iteration=iteration, losses=losses)


class FiniteLosses(HookBase):
    """Stop a run if a loss is not finite in any process, before it reaches the parameters."""

    def before_train(self) -> None:
        self.trainer.model.register_forward_hook(self._check)

    def _check(self, model: nn.Module, inputs: Any, losses: Any) -> None:
        if model.training:
            check_finite(losses, self.trainer.iter, LEARNING_RATE)


def as_fractions(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the results of an evaluator with the names used in MMEngine runs, and COCO's scores as fractions.

    detectron2's COCOEvaluator returns percentages by task: `{"bbox": {"AP50": 41.2}}` becomes
    `{"coco/bbox_AP50": 0.412}`. Results of other evaluators keep their values.
    """
    metrics = {}
    for task, values in results.items():
        for name, value in values.items():
            if task in _COCO_TASKS:
                metrics[f"coco/{task}_{name}"] = float(value) / 100
            else:
                metrics[f"{task}/{name}"] = float(value)
    return metrics
