"""Checks that both frameworks run before training or evaluation starts."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args

from ..data.image_files import MAX_SIDE
from ..errors import TwinsError, one_line
from ..weights.load import describe_defect, describe_misfit
from .options import Recipe, TrainingOptions

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")

_NUM_SHOWN = 4


def guard(
    building: Callable[[C], AbstractContextManager[None]],
) -> Callable[[Callable[Concatenate[C, P], T]], Callable[Concatenate[C, P], T]]:
    """Return a decorator for functions of a config that runs them inside `building(config)`."""

    def decorate(function: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
        @functools.wraps(function)
        def call(config: C, *arguments: P.args, **options: P.kwargs) -> T:
            with building(config):
                return function(config, *arguments, **options)

        return call

    return decorate


@contextmanager
def config_errors(config: str) -> Iterator[None]:
    """Turn any exception raised while a part of a config is built into a one-line `TwinsError`.

    A config can name any class, which can raise any exception, so all types are caught. `config` identifies the config
    in the message.
    """
    try:
        yield
    except TwinsError:
        raise
    except Exception as error:
        raise TwinsError(f"{config}: {type(error).__name__}: {one_line(error)}") from error


def check_checkpoint(state: Mapping[str, Any], target: Mapping[str, Any], checkpoint: str | Path) -> None:
    """Raise `TwinsError` unless the state dict of a checkpoint fits `target`, the state dict of the whole model."""
    misfit = describe_misfit(state, target)
    if misfit:
        raise TwinsError(
            f"checkpoint {str(checkpoint)!r} belongs to another model; {misfit}. "
            "Use the config and the overrides that it was trained with"
        )
    defect = describe_defect(state, target)
    if defect:
        raise TwinsError(f"checkpoint {str(checkpoint)!r}: {defect}")


def check_dataset_meta(meta: Any, checkpoint: str | Path, num_classes: int | None = None) -> None:
    """Raise `TwinsError` unless the metadata of the training data in a checkpoint is usable and suits the model.

    Args:
        meta: The metadata: the `classes`, and possibly the `category_ids` or the `palette`, one for each class.
        checkpoint: Path of the checkpoint, for messages.
        num_classes: Number of classes of the model, if it is known.
    """
    start = f"checkpoint {str(checkpoint)!r}: the description of its training data"
    if not isinstance(meta, Mapping):
        raise TwinsError(f"{start} is a {type(meta).__name__} instead of a dict; use another checkpoint")
    counts = {}
    for key, is_valid in (("classes", _is_name), ("category_ids", _is_id), ("palette", _is_colour)):
        values = meta.get(key)
        if values is None:
            continue
        if not isinstance(values, (list, tuple)) or not all(map(is_valid, values)):
            raise TwinsError(f"{start} has {key}={reprlib.repr(values)}; use another checkpoint")
        counts[key] = len(values)
    if counts and num_classes is not None:
        counts["classes of the model"] = num_classes
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{number} {key}" for key, number in counts.items())
        raise TwinsError(f"{start} does not fit together: {listed}; use another checkpoint")


def check_resumable(*, done: int, limit: int, limit_key: str) -> None:
    """Raise `TwinsError` if a run has done more epochs or iterations than the config asks for."""
    if done > limit:
        raise TwinsError(f"{limit_key}={limit}: the run has already done {done}; choose at least that many")


def check_batch_size(size: int | None, before: int | None, *, key: str, num_processes: int = 1) -> None:
    """Raise `TwinsError` if a resumed run would use a different batch size than before.

    Args:
        size: Number of images per process and iteration; `None` if the config does not set it.
        before: Number of images per iteration over all processes, from the checkpoint; `None` if it was not stored.
        key: The config key of `size`.
        num_processes: Number of processes of the resumed run.
    """
    if size is not None and before is not None and size * num_processes != before:
        processes = f" in {num_processes} processes" if num_processes > 1 else ""
        raise TwinsError(
            f"{key}={size}{processes}: the run has used {before} images per iteration so far, and its learning rate "
            "and data order depend on that number; use the same one"
        )


def check_num_classes(source: str, num_categories: int, num_classes: Mapping[str, int]) -> None:
    """Raise `TwinsError` unless the model has as many classes as the data.

    Args:
        source: The name of the data set in messages.
        num_categories: Number of categories in the data set.
        num_classes: Config keys that set the number of classes of the model, with their values.
    """
    wrong = [key for key, value in num_classes.items() if value != num_categories]
    if wrong:
        raise TwinsError(
            f"{source} has {num_categories} categories, but the model has {num_classes[wrong[0]]} classes: "
            f"add {' '.join(f'{key}={num_categories}' for key in wrong)}"
        )


def check_categories(source: str, found: Sequence[str], other_source: str, expected: Sequence[str]) -> None:
    """Raise `TwinsError` unless a data set has the same categories as another data set or a checkpoint.

    Each category is a string of its id and name; they are in the order of the labels.
    """
    if list(found) != list(expected):
        raise TwinsError(
            f"{source} has different categories from {other_source}: {_shortened(found)} instead of "
            f"{_shortened(expected)}; use the same categories for both"
        )


def check_training_options(options: TrainingOptions) -> None:
    """Raise `TwinsError` for an option of a training run that is out of range in any framework."""
    for name, least in (("epochs", 1), ("size", 32), ("batch", 1), ("max_dets", 1)):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or value < least):
            raise TwinsError(f"{name}={value!r}: choose a whole number, {least} or more")
    if options.size is not None and options.size > MAX_SIDE:
        raise TwinsError(
            f"size={options.size}: choose at most {MAX_SIDE}, because an image takes memory for its square"
        )
    if options.lr is not None and not _is_positive(options.lr):
        raise TwinsError(f"lr={options.lr!r}: choose a positive number")
    if options.anchor_sizes is not None and not (options.anchor_sizes and all(map(_is_positive, options.anchor_sizes))):
        raise TwinsError(f"anchor_sizes={options.anchor_sizes!r}: give one positive number for each level")
    if options.recipe not in (None, *get_args(Recipe)):
        raise TwinsError(f"recipe={options.recipe!r}: choose one of {', '.join(get_args(Recipe))}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return type(value) is int


def _is_colour(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(v) is int and 0 <= v < 256 for v in value)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def describe_data(split: str, source: str, num_images: int, num_classes: int, problems: Sequence[str]) -> Iterator[str]:
    """Yield the lines that `check-data` prints for one split: its size, then each image or annotation left out."""
    left_out = f", left out {len(problems)}" if problems else ""
    yield f"{split}: {source}: {num_images} images, {num_classes} classes{left_out}"
    yield from problems


def _shortened(categories: Sequence[str]) -> str:
    more = ", …" if len(categories) > _NUM_SHOWN else ""
    return f"{len(categories)} ({', '.join(categories[:_NUM_SHOWN])}{more})"
