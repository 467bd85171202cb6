"""The command line `twins-dense VERB`: one module per verb, and the only part of the package that prints."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import click

from ..distributed import is_first_process
from ..errors import TwinsError
from ..stopping import Stopped, exit_code

_VERBS = (
    "demo",
    "init",
    "train",
    "eval",
    "predict",
    "report",
    "check-data",
    "configs",
    "validate",
    "weights",
    "convert",
    "extract",
    "search",
    "export",
    "info",
    "benchmark",
)


class _Verbs(click.Group):
    """A group that imports the module of a verb on first use, so that `--help` is fast."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        return importlib.import_module(f".{name.replace('-', '_')}", __name__).command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="twins-dense")
def group() -> None:
    """Twins backbones for dense prediction: train, evaluate, predict, measure.

    \b
    Examples:
      twins-dense demo
      twins-dense train torchvision/mask_rcnn_svt_small_1x --data-root data/coco
    """


def main() -> None:
    """Run the command line."""
    run(lambda: group(standalone_mode=False))


def run(program: Callable[[], object]) -> None:
    """Run a program; print user errors on one line and exit with code 2."""
    try:
        program()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(exit_code())
    except Stopped as error:
        if is_first_process():
            click.echo(f"stopped: {error}", err=True)
        sys.exit(exit_code())
    except TwinsError as error:
        # An error in a data loader worker arrives with the traceback of the worker in front of it.
        line = str(error).strip().splitlines()[-1].removeprefix(f"{TwinsError.__module__}.TwinsError: ")
        click.echo(f"error: {line}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
