"""Initialise a detector or segmentor from one that was trained for other classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import TwinsError
from ..weights.load import describe_defect, describe_misfit


@dataclass(frozen=True)
class TransferReport:
    """Result of `fit_transfer`, by the names of the model.

    Attributes:
        source: Name of the checkpoint.
        loaded: Parameters and buffers that are loaded.
        fresh: Parameters of heads that keep their fresh initialisation.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        fresh = f": {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.source}: {len(self.loaded)} entries loaded, {len(self.fresh)} freshly initialised{fresh}"


def fit_transfer(
    state: Mapping[str, Any],
    target: Mapping[str, Any],
    heads: Iterable[str],
    *,
    source: str,
    same_classes: bool,
) -> tuple[dict[str, Any], TransferReport]:
    """Return the state dict with which a model starts, if it continues from a model for other classes.

    Everything must fit, except the entries of heads: these keep the values of `target` if they have another shape, or
    if the classes differ.

    Args:
        state: State dict of the checkpoint, with the names of the model.
        target: State dict of the model.
        heads: Regular expressions that match the whole names of the entries that depend on the classes.
        source: Name of the checkpoint, for messages.
        same_classes: Whether the model has the same classes, in the same order, as the checkpoint.

    Returns:
        The complete state dict for the model, and the report.

    Raises:
        TwinsError: If an entry is missing or unexpected, or one outside the heads has another shape.
    """
    pattern = re.compile("|".join(heads))
    fresh = {
        name
        for name in target.keys() & state.keys()
        if pattern.fullmatch(name) and not (same_classes and state[name].shape == target[name].shape)
    }
    misfit = describe_misfit(
        {name: value for name, value in state.items() if name not in fresh},
        {name: value for name, value in target.items() if name not in fresh},
    )
    if misfit:
        raise TwinsError(
            f"checkpoint {source!r} cannot be the start of this model, which may differ from it only in its classes; "
            f"{misfit}. Use a config of the same model"
        )
    defect = describe_defect(state, {name: value for name, value in target.items() if name not in fresh})
    if defect:
        raise TwinsError(f"checkpoint {source!r}: {defect}")
    loaded = tuple(name for name in target if name not in fresh)
    report = TransferReport(source, loaded, tuple(name for name in target if name in fresh))
    return {**target, **{name: state[name] for name in loaded}}, report
