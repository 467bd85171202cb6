"""Detection of losses that are not finite, for both frameworks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import TwinsError


def check_finite(losses: Mapping[str, Tensor], iteration: int, learning_rate_key: str) -> None:
    """Check the scalar losses of an iteration before they reach the parameters.

    Raises:
        TwinsError: if a loss is not finite; the message names that loss and the config key `learning_rate_key`.
    """
    if losses and not torch.stack([*losses.values()]).isfinite().all():
        values = {name: value.item() for name, value in losses.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        raise diverged(iteration, f"{_listed(bad)} (all losses: {_listed(values)})", learning_rate_key)


def diverged(iteration: int, values: str, learning_rate_key: str) -> TwinsError:
    """Return the error to raise for losses that are not finite; `values` describes them in the message."""
    return TwinsError(
        f"iteration {iteration}: not finite: {values}; the checkpoints written so far are kept. "
        f"Lower {learning_rate_key}, or check the images and labels of this batch"
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())
