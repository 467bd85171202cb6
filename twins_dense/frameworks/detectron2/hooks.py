"""What detectron2's trainer and checkpointer lack for runs that can be killed at any moment."""

from __future__ import annotations

import io
import sys
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
from ..divergence import check_finite
from .data import PositionSampler

LEARNING_RATE = "optimizer.lr"  # its key in a config


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, writing files that appear whole or not at all.

    Args:
        model: the detector, maybe in DistributedDataParallel.
        save_dir: the work directory.
        facts: stored beside the model: `dataset_meta` (`classes` and `category_ids`) for those who predict with it,
            `total_batch_size` for those who resume.
        checkpointables: further objects with a state dict, such as the trainer.
    """

    def __init__(self, model: nn.Module, save_dir: str, facts: dict[str, Any], **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.facts = facts

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth and let `last_checkpoint` name it."""
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
        """Let `last_checkpoint` name a file."""
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())


class ExactResume(HookBase):
    """Lets a resumed run go on as if it had not stopped; to be registered before the checkpointer.

    Everything random depends on the run's seed and the iteration. RetinaNet's running mean of its number of positive
    anchors, an attribute that detectron2 keeps out of its state dict, travels with the checkpoint.

    Args:
        sampler: of the training loader; None for one of the user's own, which then starts anew.
        seed: of the run.
        period: iterations between checkpoints.
    """

    def __init__(self, sampler: PositionSampler | None, seed: int, period: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.period = period
        self.normalizers: list[float] | None = None  # one a process, from the last checkpoint

    def before_train(self) -> None:
        if self.sampler is not None:
            self.sampler.first_iteration = self.trainer.start_iter
        if self.normalizers is not None:
            self._model.loss_normalizer = self.normalizers[comm.get_rank() % len(self.normalizers)]
        # Made now: an iterator draws from torch's generator once, and would do so in the first iteration after a seed.
        iter(self.trainer._data_loader_iter)

    def before_step(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.trainer.iter, comm.get_rank()))

    def after_step(self) -> None:
        # All processes take part here; only the first one saves.
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
    """detectron2's evaluation during and after training; not after a last iteration that has failed.

    detectron2 would evaluate then, too, and wait for processes that wait for this one.
    """

    def after_train(self) -> None:
        if sys.exc_info()[0] is None:
            super().after_train()


class FiniteLosses(HookBase):
    """Stops a run before a loss that is not finite reaches the parameters, in whichever process it appears."""

    def before_train(self) -> None:
        self.trainer.model.register_forward_hook(self._check)

    def _check(self, model: nn.Module, inputs: Any, losses: Any) -> None:
        if model.training:
            check_finite(losses, self.trainer.iter, LEARNING_RATE)
