"""Hooks and a checkpointer for detectron2's trainer, which allow a run to be killed and resumed at any moment."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ... import stopping
from ...atomic import write_atomically
from ...distributed import any_process
from ...seeds import derived_seed
from ..divergence import check_finite
from ..work_dir import STOPPED_NAME, stopped_after
from .data import PositionSampler

_COCO_TASKS = ("bbox", "segm", "keypoints")
_WINDOW = 20  # iterations over which detectron2 smooths the logged values
BEST = "model_best"  # name of the best checkpoint, without its suffix
LEARNING_RATE = "optimizer.lr"  # the key of the learning rate in a config


class EarlyStop(Exception):
    """Signals that a run is to stop, because a number of evaluations have brought no improvement."""


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, but its files appear whole or not at all.

    Args:
        model: The detector, possibly inside DistributedDataParallel.
        save_dir: The work directory.
        facts: Entries to store with the model: `dataset_meta` (`classes` and `category_ids`), which prediction needs,
            `total_batch_size`, which resuming needs, and the config as data, if it can be stored.
        saved_model: The model whose weights are saved, if it is another one than the model that they are loaded into.
        checkpointables: Further objects whose state dicts are stored, such as the trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        facts: dict[str, Any],
        *,
        saved_model: nn.Module | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.facts = facts
        self.saved_model = self.model if saved_model is None else saved_model

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth, then write its name to `last_checkpoint` unless it is the best checkpoint."""
        if not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        buffer = io.BytesIO()
        content = {"model": self.saved_model.state_dict(), **states, **self.facts, **kwargs}
        torch.save(content, buffer)
        self.logger.info(f"Saving checkpoint to {self.save_dir}/{name}.pth")
        write_atomically(Path(self.save_dir) / f"{name}.pth", buffer.getvalue())
        if name != BEST:
            self.tag_last_checkpoint(f"{name}.pth")
        if name not in (BEST, STOPPED_NAME.removesuffix(".pth")):  # the run has passed where it was stopped
            (Path(self.save_dir) / STOPPED_NAME).unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of a file to `last_checkpoint`."""
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())


class ExactResume(HookBase):
    """Make a resumed run continue as if it had not stopped. Register this hook before all others that log or save.

    All randomness depends on the seed of the run and the iteration. The state of this hook contains what detectron2
    leaves out of its checkpoints: RetinaNet's running mean of the number of positive anchors, and the latest logged
    values, from which detectron2 computes running medians.

    Args:
        sampler: Sampler of the training loader; `None` for a custom loader, whose order restarts after a resume.
        seed: Seed of the run.
        periods: Numbers of iterations after whose multiples a checkpoint may be saved.
    """

    def __init__(self, sampler: PositionSampler | None, seed: int, periods: Collection[int]) -> None:
        self.sampler = sampler
        self.seed = seed
        self.periods = periods
        self.normalizers: list[float] | None = None  # one running mean per process, as in the last checkpoint
        self.logged: dict[str, Any] = {}

    def before_train(self) -> None:
        if self.sampler is not None:
            self.sampler.first_iteration = self.trainer.start_iter
        if self.normalizers is not None:
            self._model.loss_normalizer = self.normalizers[comm.get_rank() % len(self.normalizers)]
        for name, (is_smoothed, values) in self.logged.items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=is_smoothed, cur_iter=iteration)
        # Creating the iterator draws from torch's generator once, so do it before the first iteration is seeded.
        # detectron2 has no public name for the iterator.
        iter(self.trainer._data_loader_iter)

    def before_step(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.trainer.iter, comm.get_rank()))

    def after_step(self) -> None:
        # All processes must call `all_gather`, although only the first one saves the checkpoint.
        done = self.trainer.iter + 1
        if any(done % period == 0 for period in self.periods) or done == self.trainer.max_iter:
            self.gather()

    def gather(self) -> None:
        """Collect the state of all processes, which have to call this method together before a checkpoint is saved."""
        if hasattr(self._model, "loss_normalizer"):
            self.normalizers = comm.all_gather(float(self._model.loss_normalizer))

    def state_dict(self) -> dict[str, Any]:
        storage, logged = self.trainer.storage, {}
        for name, is_smoothed in storage.smoothing_hints().items():
            values = storage.history(name).values()[-_WINDOW if is_smoothed else -1 :]
            if values[-1][1] == self.trainer.iter:  # not metrics of an earlier evaluation, which are written
                logged[name] = (is_smoothed, values)
        state: dict[str, Any] = {"logged": logged}
        if self.normalizers is not None:
            state["loss_normalizers"] = self.normalizers
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.normalizers = state.get("loss_normalizers")
        self.logged = state.get("logged", {})

    @property
    def _model(self) -> Any:
        return getattr(self.trainer.model, "module", self.trainer.model)


class StopOnRequest(HookBase):
    """Save a checkpoint and end the run after the current iteration, if SIGTERM asks for it (see `stopping`).

    The checkpoint is called `stopped.pth`, and the next regular checkpoint replaces it. Register this hook last.
    """

    def __init__(self, checkpointer: RunCheckpointer, exact: ExactResume) -> None:
        self.checkpointer = checkpointer
        self.exact = exact

    def after_step(self) -> None:
        if any_process(stopping.is_requested()):
            self.stop()

    def stop(self) -> NoReturn:
        """Save a checkpoint of the last iteration and end the run."""
        self.exact.gather()
        self.checkpointer.save(STOPPED_NAME.removesuffix(".pth"), iteration=self.trainer.iter)
        comm.synchronize()
        raise stopped_after(Path(self.checkpointer.save_dir), self.trainer.iter + 1)


class FiniteLosses(HookBase):
    """Stop a run if a loss is not finite in any process, before it reaches the parameters."""

    def before_train(self) -> None:
        self.trainer.model.register_forward_hook(self._check)

    def _check(self, model: nn.Module, inputs: Any, losses: Any) -> None:
        if model.training and torch.is_grad_enabled():  # not for losses of validation images
            check_finite(losses, self.trainer.iter, LEARNING_RATE)


def as_fractions(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the results of an evaluator with the names used in MMEngine runs, and COCO's scores as fractions.

    COCO's evaluators return percentages by task: `{"bbox": {"AP50": 41.2}}` becomes `{"coco/bbox_AP50": 0.412}`.
    Results of other evaluators keep their values.
    """
    metrics = {}
    for task, values in results.items():
        for name, value in values.items():
            if task in _COCO_TASKS:
                metrics[f"coco/{task}_{name}"] = float(value) / 100
            else:
                metrics[f"{task}/{name}"] = float(value)
    return metrics
