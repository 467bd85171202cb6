"""Turn any error from an unusual value in a config into one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, TypeVar

from omegaconf import DictConfig

from ...errors import shown
from ..checks import config_errors

P = ParamSpec("P")
T = TypeVar("T")


def building(config: DictConfig) -> AbstractContextManager[None]:
    """Return a context manager that turns errors raised while a part of a config is built into one line.

    The line names the overrides, one of which is often the reason.
    """
    overrides = vars(config).get("_given", ())
    return config_errors(f"config with {shown(' '.join(overrides))}" if overrides else "config")


def guarded(function: Callable[Concatenate[DictConfig, P], T]) -> Callable[Concatenate[DictConfig, P], T]:
    """Decorate a function of a config, so that any error from an unusual value in the config becomes one line."""

    @functools.wraps(function)
    def call(config: DictConfig, *arguments: P.args, **options: P.kwargs) -> T:
        with building(config):
            return function(config, *arguments, **options)

    return call
