"""An exponential moving average of the weights, which is evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# The average covers about the last tenth of the run so far, but at most about 5,000 iterations, as in MMEngine runs.
_WARM_UP = 10
_SMALLEST_WEIGHT = 0.0002


class WeightAverage(HookBase):
    """Average the weights after each iteration. Register this hook before the checkpointer.

    The average starts as the weights after the first iteration. After n more iterations, it becomes
    (1 - w) * average + w * weights with w = max(0.0002, 10 / (10 + n)). Buffers are copied. The trained weights are
    part of the state of this hook, and thus of the checkpoints, so that a run can be resumed exactly.

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
    weight = max(_SMALLEST_WEIGHT, _WARM_UP / (_WARM_UP + int(num_averaged)))
    get_ema_multi_avg_fn(1 - weight)(averages, values, num_averaged)
