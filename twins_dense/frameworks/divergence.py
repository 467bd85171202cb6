"""Losses that are not finite, for both engines."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import TwinsError


def check_finite(losses: Mapping[str, Tensor], iteration: int, rate: str) -> None:
    """Look at an iteration's losses, scalars, before they reach the parameters; `rate` is the config's key of it.

    Raises:
        TwinsError: where one is not finite; the message names it.
    """
    if losses and not torch.stack([*losses.values()]).isfinite().all():
        values = {name: value.item() for name, value in losses.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        raise diverged(iteration, f"{_listed(bad)} of {_listed(values)}", rate)


def diverged(iteration: int, what: str, rate: str) -> TwinsError:
    """The error of a run that can't go on."""
    return TwinsError(
        f"iteration {iteration}: not finite: {what}; checkpoints written before stay. "
        f"Lower {rate}, or look at the images and labels of that batch"
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())
