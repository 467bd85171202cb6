"""Learning rate schedules and gradient clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.solver import WarmupParamScheduler
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.nn.utils import clip_grad_norm_

from ...errors import TwinsError


def multi_step_lr(max_iter: int, *, milestones: Sequence[float], warmup_iters: int) -> WarmupParamScheduler:
    """Return the published schedule: a linear warm-up from 0.001, then a division by 10 at each milestone.

    Values of the schedule are multiples of the base learning rate.

    Args:
        max_iter: Number of iterations of the whole run.
        milestones: Milestones as fractions of the run, in ascending order.
        warmup_iters: Number of warm-up iterations; it is reduced if the warm-up would reach the first milestone.

    Raises:
        TwinsError: if `max_iter` is below 1.
    """
    if max_iter < 1:
        raise TwinsError(f"train.max_iter={max_iter}: choose 1 or more")
    # In very short runs, milestones may coincide with each other, the start or the end.
    steps = sorted({round(milestone * max_iter) for milestone in milestones} - {0, max_iter})
    values = [0.1**step for step in range(len(steps) + 1)]
    schedule = MultiStepParamScheduler(values, milestones=[*steps, max_iter])
    # detectron2 warms up to the value of the schedule at the end of the warm-up, so it must end before the first step.
    warmup_iters = min(warmup_iters, min(steps, default=max_iter) - 1)
    return WarmupParamScheduler(schedule, warmup_factor=0.001, warmup_length=warmup_iters / max_iter)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Make an optimiser scale the gradients of all parameters before each step, so that their norm is at most this.

    With mixed precision, `GradScaler` calls the optimiser after it has unscaled the gradients. The norm before
    clipping is logged as `grad_norm`.
    """

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        get_event_storage().put_scalar("grad_norm", float(clip_grad_norm_(parameters, max_norm)))

    optimizer.register_step_pre_hook(clip)
