"""Checks that both frameworks make before a run or an evaluation starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TwinsError, one_line
from ..weights.load import describe_misfit

_NUM_SHOWN = 4


@contextmanager
def config_errors(config: str) -> Iterator[None]:
    """Turn any exception raised while a part of a config is built into a `TwinsError` of one line.

    The type of the exception depends on the class that the config names, so all of them are caught. `config` names the
    config in the message.
    """
    try:
        yield
    except TwinsError:
        raise
    except Exception as error:
        raise TwinsError(f"{config}: {type(error).__name__}: {one_line(error)}") from error


def check_checkpoint(state: Mapping[str, Any], target: Mapping[str, Any], checkpoint: str | Path) -> None:
    """Raise `TwinsError` unless the state dict of a checkpoint fits the whole model, whose state dict is `target`."""
    misfit = describe_misfit(state, target)
    if misfit:
        raise TwinsError(
            f"checkpoint {str(checkpoint)!r} is of another model; {misfit}. "
            "Use the config and the overrides that it was trained with"
        )


def check_resumable(*, done: int, limit: int, limit_key: str) -> None:
    """Raise `TwinsError` if a run has done more epochs or iterations than the config asks for."""
    if done > limit:
        raise TwinsError(f"{limit_key}={limit}: the run has done {done} already; choose at least as many")


def check_batch_size(size: int | None, before: int | None, *, key: str, num_processes: int = 1) -> None:
    """Raise `TwinsError` if a resumed run would use another batch size than before.

    Args:
        size: Images per process and iteration; `None` if the config does not say.
        before: Images per iteration over all processes, from the checkpoint; `None` if it does not say.
        key: The config key of `size`.
        num_processes: Number of processes of the resumed run.
    """
    if size is not None and before is not None and size * num_processes != before:
        processes = f" in {num_processes} processes" if num_processes > 1 else ""
        raise TwinsError(
            f"{key}={size}{processes}: the run has used {before} images per iteration, and its learning rate and the "
            "order of its data depend on that; use the same number"
        )


def check_num_classes(source: str, num_categories: int, num_classes: Mapping[str, int]) -> None:
    """Raise `TwinsError` unless the model has as many classes as the data.

    Args:
        source: The data set, as messages name it.
        num_categories: Number of categories in the data set.
        num_classes: Value of each config key that sets the number of classes of the model.
    """
    wrong = [key for key, value in num_classes.items() if value != num_categories]
    if wrong:
        raise TwinsError(
            f"{source} has {num_categories} categories and the model {num_classes[wrong[0]]} classes: "
            f"add {' '.join(f'{key}={num_categories}' for key in wrong)}"
        )


def check_categories(source: str, found: Sequence[str], other_source: str, expected: Sequence[str]) -> None:
    """Raise `TwinsError` unless a data set has the same categories as another one or as a checkpoint.

    Categories are texts of id and name, in the order of the labels.
    """
    if list(found) != list(expected):
        raise TwinsError(
            f"{source} has other categories than {other_source}: {_shortened(found)} instead of "
            f"{_shortened(expected)}; use the same list for both"
        )


def describe_data(split: str, source: str, num_images: int, num_classes: int, problems: Sequence[str]) -> Iterator[str]:
    """Yield the lines of `check-data` on one split: its size, then what was left out of it."""
    left_out = f", left out {len(problems)}" if problems else ""
    yield f"{split}: {source}: {num_images} images, {num_classes} classes{left_out}"
    yield from problems


def _shortened(categories: Sequence[str]) -> str:
    more = ", …" if len(categories) > _NUM_SHOWN else ""
    return f"{len(categories)} ({', '.join(categories[:_NUM_SHOWN])}{more})"
