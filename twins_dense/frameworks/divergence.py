"""The check for losses that are not finite, used by both frameworks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import TwinsError


def check_finite(losses: Mapping[str, Tensor], iteration: int, learning_rate_key: str) -> None:
    """Check the losses of an iteration, which are scalars, before they reach the parameters.

    Raises:
        TwinsError: if one of them is not finite; the message names it, and `learning_rate_key` of the config.
    """
    if losses and not torch.stack([*losses.values()]).isfinite().all():
        values = {name: value.item() for name, value in losses.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        raise diverged(iteration, f"{_listed(bad)} of {_listed(values)}", learning_rate_key)


def diverged(iteration: int, values: str, learning_rate_key: str) -> TwinsError:
    """Return the error that ends a run whose losses (`values`) are not finite."""
    return TwinsError(
        f"iteration {iteration}: not finite: {values}; the checkpoints written so far are kept. "
        f"Lower {learning_rate_key}, or check the images and labels of that batch"
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())
