"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, get_args

import click

from ..errors import TwinsError, did_you_mean
from ..models.spec import get_spec


def _together(*options: Callable) -> Callable:
    """One decorator of several, in the order of the help."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def workers_option(most: int) -> Callable:
    """How many processes read images; by default a process a core, and not more than `most`."""
    return click.option(
        "--workers",
        default=min(most, os.cpu_count() or 1),
        show_default=True,
        type=click.IntRange(min=0),
        help="Processes that read images, for each process.",
    )


device_option = click.option("--device", help="A torch device.  [default: a GPU if there is one, else cpu]")

# Which trained backbone, and which of its levels.
backbone_options = _together(
    click.option("--variant", required=True, help="One of the six, see `twins-dense info`."),
    click.option("--weights", required=True, help="A file, or a name of `twins-dense weights list`."),
    click.option("--levels", default="c2,c3,c4,c5", show_default=True, help="Which levels."),
    click.option(
        "--window-padding",
        default="zeros",
        show_default=True,
        help="SVT's windows on maps that 7 doesn't divide: zeros, mask or upstream_mask.",
    ),
)

# Those of detectron2's launcher, for verbs that can run in several processes; all None by default.
launch_options = _together(
    click.option("--num-gpus", type=click.IntRange(1), help="Processes on this machine, one a GPU.  [default: 1]"),
    click.option("--num-machines", type=click.IntRange(1), help="Machines of the run.  [default: 1]"),
    click.option("--machine-rank", type=click.IntRange(0), help="Which of them this is.  [default: 0]"),
    click.option("--dist-url", help="Where they meet, tcp://HOST:PORT.  [default: auto]"),
)


def parse_levels(levels: str, variant: str) -> tuple[int, ...]:
    """ "c2,c5" to the stages (0, 3); `TwinsError` for levels that the variant doesn't have."""
    known = [f"c{stage + 2}" for stage in range(len(get_spec(variant).stages))]
    names = [name.strip() for name in levels.split(",")]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise TwinsError(f"--levels {levels!r}: unknown level {unknown!r}{did_you_mean(unknown, known)}")
    return tuple(sorted({known.index(name) for name in names}))


def check_window_padding(name: str) -> Any:
    """The name itself; `TwinsError` for an unknown one."""
    from ..models.layers import WindowPadding

    if name not in get_args(WindowPadding):
        raise TwinsError(f"--window-padding {name!r}: choose {', '.join(get_args(WindowPadding))}")
    return name


def find_device(name: str | None) -> Any:
    """The torch device of `--device`; by default a GPU if there is one, under torchrun one for each process."""
    import torch

    if name is None or name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name or torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise TwinsError(f"--device {name!r}: {str(error).splitlines()[0]}") from None
    return device
