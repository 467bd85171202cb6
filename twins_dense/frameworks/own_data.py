"""Choose the settings of a run from the user's own data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from ..data.check import describe_contents, describe_folder, describe_suggestion
from ..data.layouts import DataFolder, recognise
from .options import TrainingOptions

# Options that the data suggests; `TrainingOptions` and `Suggestion` have these names in common.
_SUGGESTED = ("recipe", "epochs", "batch", "size", "max_dets", "anchor_sizes")


class Section(NamedTuple):
    """Lines for the user, with a title."""

    title: str
    lines: list[str]


class Plan(NamedTuple):
    """A run on a data folder.

    Attributes:
        data: The recognised folder.
        options: The options that the user gave, completed by those that suit the data.
        sections: Description of the folder, its training images and the options with their reasons.
    """

    data: DataFolder
    options: TrainingOptions
    sections: tuple[Section, ...]


def plan_run(folder: str | Path, given: TrainingOptions, *, out: str | Path, skip_bad: bool = False) -> Plan:
    """Recognise a data folder, and choose the options of a run from its images and annotations.

    Args:
        folder: Folder of the data set (see `recognise`).
        given: Options that the user has chosen; they are kept.
        out: Folder for annotation files that have to be written.
        skip_bad: Whether to leave out unusable annotations instead of raising an error.

    Raises:
        TwinsError: if the layout of the folder is not recognised, or its files cannot be used.
    """
    data = recognise(folder, out=out, skip_bad=skip_bad)
    contents, suggestion = describe_contents(data, size=given.size)
    if given.recipe == "published":  # its number of epochs and batch size are in the config
        suggestion = dataclasses.replace(suggestion, epochs=None, batch=None)
    chosen = {name: value for name in _SUGGESTED if (value := getattr(given, name)) is not None}
    reasons = {**suggestion.reasons, **dict.fromkeys(chosen, "As you chose.")}
    suggestion = dataclasses.replace(suggestion, **chosen, reasons=reasons)
    options = dataclasses.replace(given, **{name: getattr(suggestion, name) for name in _SUGGESTED})
    sections = (
        Section("data", list(describe_folder(data))),
        Section("training images", contents),
        Section("settings", list(describe_suggestion(suggestion))),
    )
    return Plan(data, options, sections)


def describe_plan(plan: Plan, config: str) -> list[str]:
    """Return the lines at the start of a config that was written for a plan.

    Args:
        plan: The plan.
        config: Path or name of the config that it started from.
    """
    lines = [f"{config}, adapted to {plan.data.root} by `twins-dense init`"]
    for section in plan.sections:
        lines += ["", f"{section.title}:", *(f"  {line}" for line in section.lines)]
    return lines
