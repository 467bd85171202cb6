"""Turn any error from an unusual value in a config into one line."""

from __future__ import annotations

from contextlib import AbstractContextManager

from omegaconf import DictConfig

from ...errors import shown
from ..checks import config_errors, guard


def building(config: DictConfig) -> AbstractContextManager[None]:
    """Return a context manager that turns errors raised while a part of a config is built into one line.

    The line names the overrides, one of which is often the reason.
    """
    overrides = vars(config).get("_given", ())
    return config_errors(f"config with {shown(' '.join(overrides))}" if overrides else "config")


# Decorates functions of a config: any error from an unusual value in the config becomes one line.
guarded = guard(building)
