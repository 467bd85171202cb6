"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, get_args

import click

from ..errors import TwinsError, did_you_mean
from ..spec import get_spec


def backbone_options(command: Callable) -> Callable:
    """Which trained backbone, and which of its levels."""
    options = (
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
    for option in reversed(options):
        command = option(command)
    return command


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
    from ..layers import WindowPadding

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
