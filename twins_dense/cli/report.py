"""`twins-dense report`: write a report about an evaluation or a data set."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from ..errors import TwinsError, requires_extra


@click.command("report", short_help="Write a report about an evaluation or a data set.")
@click.argument("source", metavar="RUN|EVAL", required=False)
@click.option("--against", metavar="RUN|EVAL", help="Compare with this run or evaluation on the same images.")
@click.option("--data", "data_dir", metavar="DIR", help="Report about the images and annotations of this folder.")
@click.option("--out", help="File to write.  [default: report.html in RUN or EVAL; data_report.html for --data]")
def command(source: str | None, against: str | None, data_dir: str | None, out: str | None) -> None:
    """Write one HTML file that shows how good a model is and what goes wrong, or what a data set contains.

    RUN is a work directory of `twins-dense train`: its own evaluation is used, else the newest of `twins-dense eval`.
    EVAL is the folder of an evaluation. The file needs no network and can be opened, sent and printed. The model and a
    GPU are not needed, but the images are.

    \b
    Examples:
      twins-dense report runs/mine
      twins-dense report runs/mine --against runs/before --out comparison.html
      twins-dense report runs/mine_eval/20260301_140500
      twins-dense report --data my_data
    """
    if (source is None) == (data_dir is None):
        raise click.UsageError("Give either the folder of a run or an evaluation, or --data DIR.")
    if data_dir is None:
        assert source is not None
        with requires_extra("report"):
            from ..evaluation.report.build import write_report
        path = write_report(source, out, against=against, checkpoint=_checkpoint_of(source))
    else:
        if against is not None:
            raise click.UsageError("--against goes with a run or an evaluation, not with --data.")
        with requires_extra("report"):
            from ..evaluation.report.data import write_data_report
        path = write_data_report(data_dir, out or "data_report.html")
    click.echo(f"{os.path.relpath(path)} ({path.stat().st_size / 1e6:.1f} MB)")


def _checkpoint_of(source: str) -> Path | None:
    """Return the best checkpoint of a training run, or `None` if the folder is not one."""
    from ..frameworks.work_dir import best_checkpoint

    with contextlib.suppress(TwinsError):
        return best_checkpoint(source)
    return None
