"""An exponential moving average of the weights, which is evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_DECAY = 0.999  # at the end of the warm-up: a mean over about 1,000 iterations
_WARM_UP = 10  # so that the average of a short run does not remember its first iterations


class WeightAverage(HookBase):
    """Average the weights after each iteration. Register this hook before the checkpointer.

    After iteration t, counted from 0, the average moves towards the weights by max(1 - 0.999, 1 - (1 + t) / (10 + t)),
    as TensorFlow's ExponentialMovingAverage does. Buffers are copied. The trained weights are part of the state of this
    hook, and thus of the checkpoints, so that a run can be resumed exactly.

    Args:
        model: The trained model on its device, not inside DistributedDataParallel.
    """

    def __init__(self, model: nn.Module) -> None:
        self.trained = model
        self._average = AveragedModel(model, multi_avg_fn=_update)
        self._average.requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._average.module

    def before_train(self) -> None:
        if not self._average.n_averaged:
            self.model.load_state_dict(self.trained.state_dict())
        self._copy_normalizer()

    def after_step(self) -> None:
        self._average.update_parameters(self.trained)
        self._copy_normalizer()

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained.state_dict(), "num_averaged": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the weights that the checkpointer has just loaded, which are the average, and the trained ones."""
        self.model.load_state_dict(self.trained.state_dict())
        self.trained.load_state_dict(state["trained"])
        self._average.n_averaged.fill_(state["num_averaged"])

    def _copy_normalizer(self) -> None:
        """Copy RetinaNet's running mean of the number of positive anchors, which its losses are divided by."""
        if hasattr(self.trained, "loss_normalizer"):
            self.model.loss_normalizer = self.trained.loss_normalizer


def _update(averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int) -> None:
    done = int(num_averaged)
    decay = min(_DECAY, (1 + done) / (_WARM_UP + done))
    get_ema_multi_avg_fn(decay)(averages, values, torch.tensor(done))
