"""Options that several verbs share, and the parsing of their values."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import click

from ..distributed import is_first_process
from ..errors import TwinsError, did_you_mean
from ..models.spec import get_spec

RECIPES = ("published", "small-data")  # those of `frameworks.options.Recipe`, whose package would make `--help` slow


class NumberRange(click.FloatRange):
    """A range of numbers. click's own accepts NaN, which no comparison excludes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def _together(*options: Callable) -> Callable:
    """Combine decorators into one; `--help` keeps their order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def workers_option(most: int) -> Callable:
    """Return the option for the number of data loader workers, by default one per core and at most `most`."""
    return click.option(
        "--workers",
        default=min(most, os.cpu_count() or 1),
        show_default=True,
        type=click.IntRange(min=0),
        help="Data loader workers, in each process.",
    )


device_option = click.option("--device", help="A torch device.  [default: a GPU if there is one, else cpu]")

own_data_option = click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    help="Your own data, in COCO, YOLO, Pascal VOC or ADE20K layout, or images with label maps.",
)

allow_outside_option = click.option(
    "--allow-outside", is_flag=True, help="Read images outside the image folder if the data names them."
)

# Options that change the data of a config.
data_options = _together(
    click.option("--data-root", help="Folder of the data set; relative paths in the config start here."),
    click.option("--skip-bad", is_flag=True, help="Leave out unusable images and annotations, and list them."),
    click.option("--strict", is_flag=True, help="Refuse boxes without area instead of leaving them out with a note."),
    allow_outside_option,
)


def _anchor_sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(size) for size in value.split(","))
    except ValueError:
        raise TwinsError(f"--anchor-sizes {value!r}: write numbers with commas, for example 8,16,32,64,128") from None


# Options that change how a model is trained, with the names of `TrainingOptions`; without `--data`, the config decides.
training_options = _together(
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images."),
    click.option("--size", type=click.IntRange(min=32), help="Short side of images (segmentors: side of crops)."),
    click.option("--batch", type=click.IntRange(min=1), help="Images per iteration, over all processes."),
    click.option("--lr", type=NumberRange(min=0, min_open=True), help="Learning rate at that batch size."),
    click.option("--max-dets", type=click.IntRange(min=1), help="Detections per image, in the model and the metric."),
    click.option("--anchor-sizes", callback=_anchor_sizes, help="One per level, in pixels: 8,16,32,64,128."),
    click.option(
        "--recipe",
        type=click.Choice(RECIPES),
        help="Schedule and settings: as published for COCO or ADE20K, or for small data sets.",
    ),
    click.option("--weights", help="ImageNet weights of the backbone: a file, or a name from `weights list`."),
    click.option("--init", help="Checkpoint of a detector or segmentor of other classes to start from."),
    click.option("--freeze", metavar="PART", help="Keep a part fixed: backbone, or stages:N for its first N stages."),
)

# Options that decide what a run records, with the names of `MonitoringOptions`.
monitoring_options = _together(
    click.option("--best", metavar="METRIC", help="Metric that chooses the best checkpoint, such as coco/bbox_AP50."),
    click.option("--ema", is_flag=True, help="Evaluate and save an exponential moving average of the weights."),
    click.option("--patience", type=click.IntRange(min=1), help="Stop after N evaluations without improvement."),
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard events."),
    click.option("--val-loss", is_flag=True, help="Compute the losses on the validation images, too."),
    click.option(
        "--samples",
        default=4,
        show_default=True,
        type=click.IntRange(min=0),
        help="Validation images to draw at each evaluation.",
    ),
)


def _backbone_options(*, required: bool) -> Callable:
    return _together(
        click.option("--variant", required=required, help="One of the six variants of `twins-dense info`."),
        click.option("--weights", required=required, help="A file, or a name from `twins-dense weights list`."),
        click.option("--levels", default="c2,c3,c4,c5", show_default=True, help="Levels of the pyramid."),
        click.option(
            "--window-padding",
            default="zeros",
            show_default=True,
            help="Padding of SVT's windows on maps that 7 does not divide: zeros, mask or upstream_mask.",
        ),
    )


# Options that choose a trained backbone and its levels.
backbone_options = _backbone_options(required=True)
optional_backbone_options = _backbone_options(required=False)

# Options of detectron2's launcher, for verbs that can run in several processes; all are None by default.
launch_options = _together(
    click.option(
        "--num-gpus", type=click.IntRange(1), help="detectron2: processes on this machine, one per GPU.  [default: 1]"
    ),
    click.option("--num-machines", type=click.IntRange(1), help="detectron2: number of machines.  [default: 1]"),
    click.option("--machine-rank", type=click.IntRange(0), help="detectron2: rank of this machine.  [default: 0]"),
    click.option("--dist-url", help="detectron2: address where the machines meet, tcp://HOST:PORT.  [default: auto]"),
)


def parse_levels(levels: str, variant: str) -> tuple[int, ...]:
    """Return the stages of levels, (0, 3) for "c2,c5"; `TwinsError` for levels that the variant does not have."""
    known = [f"c{stage + 2}" for stage in range(len(get_spec(variant).stages))]
    names = [name.strip() for name in levels.split(",")]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise TwinsError(f"--levels {levels!r}: unknown level {unknown!r}{did_you_mean(unknown, known)}")
    return tuple(sorted({known.index(name) for name in names}))


def check_window_padding(name: str) -> Any:
    """Return the name; `TwinsError` for an unknown one."""
    from ..models.layers import WindowPadding

    if name not in get_args(WindowPadding):
        raise TwinsError(f"--window-padding {name!r}: choose {', '.join(get_args(WindowPadding))}")
    return name


def find_device(name: str | None) -> Any:
    """Return the torch device of `--device`; by default a GPU if there is one, under torchrun one per process."""
    import torch

    if name is None or name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name or torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise TwinsError(f"--device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def check_data_options(data_dir: str | None, data_root: str | None) -> None:
    """Raise `UsageError` if both --data and --data-root are given."""
    if data_dir is not None and data_root is not None:
        raise click.UsageError("--data and --data-root exclude each other: --data finds all files of your data itself.")


def take_options(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options with the names of a dataclass's fields from a dictionary, and return them."""
    return {field.name: options.pop(field.name) for field in dataclasses.fields(kind) if field.name in options}


def print_sections(sections: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Print titles with the lines that belong to them, in the first process only."""
    if is_first_process():
        for title, lines in sections:
            click.secho(title, bold=True)
            for line in lines:
                click.echo(f"  {line}")


def parse_source(arguments: tuple[str, ...]) -> tuple[str | tuple[str, str], tuple[str, ...], tuple[str, ...]]:
    """Split the arguments `[CONFIG] MODEL REST... [KEY=VALUE]...` of a verb.

    Returns:
        The source of the model for `load_model`, the rest, and the overrides.
    """
    from ..frameworks.shipped_configs import is_config

    overrides = tuple(argument for argument in arguments if "=" in argument and not Path(argument).exists())
    others = tuple(argument for argument in arguments if argument not in overrides)
    if not others or (is_config(others[0]) and len(others) < 2):
        raise click.UsageError("Missing argument 'MODEL'.")
    if is_config(others[0]):
        return (others[0], others[1]), others[2:], overrides
    return others[0], others[1:], overrides
