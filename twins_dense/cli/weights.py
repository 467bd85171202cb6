"""`twins-dense weights`: list, download and verify the published checkpoints."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path

import click

from ..errors import TwinsError
from ..weights.catalog import CATALOG, WeightsSpec, cache_dir, get_weights_spec, published_as


@click.group("weights")
def command() -> None:
    """List, download and verify the published checkpoints.

    The name of a checkpoint works wherever a path does, and the file is downloaded on first use. Files are stored in
    ~/.cache/twins_dense, or in the folder that TWINS_DENSE_HOME names.

    \b
    Examples:
      twins-dense weights list
      twins-dense weights download svt_small.in1k-mmpretrain
      twins-dense weights verify
    """


@command.command("list", short_help="List the published checkpoints with their scores.")
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print all fields as JSON.")
def list_command(names: tuple[str, ...], as_json: bool) -> None:
    """List the published checkpoints with their scores; NAMES (with * and ?) select some of them.

    \b
    Examples:
      twins-dense weights list
      twins-dense weights list 'svt_small.*' --json
    """
    specs = _chosen(names)
    if as_json:
        rows = [{**dataclasses.asdict(spec), "path": str(spec.path), "here": spec.path.exists()} for spec in specs]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(spec.name) for spec in specs)
    for spec in specs:
        scores = ", ".join(f"{metric} {value:g}" for metric, value in spec.scores.items())
        here = "here" if spec.path.exists() else ""
        click.echo(
            f"{spec.name:{width}}  {here:4}  {scores}{' (' if scores else ''}{spec.protocol}{')' if scores else ''}"
        )


@command.command("download", short_help="Download checkpoints and check their SHA-256.")
@click.argument("names", nargs=-1, required=True)
def download_command(names: tuple[str, ...]) -> None:
    """Download checkpoints by NAMES (with * and ?), check their SHA-256, and print their paths.

    Interrupted downloads resume. Files that exist already are not downloaded again.

    \b
    Examples:
      twins-dense weights download svt_small.in1k-mmpretrain
      twins-dense weights download 'svt_*.in1k-official'
    """
    from ..weights.download import download

    for spec in _chosen(names):
        click.echo(str(download(spec)))


@command.command("verify", short_help="Compare SHA-256 hashes with the published ones.")
@click.argument("names_or_files", nargs=-1)
def verify_command(names_or_files: tuple[str, ...]) -> None:
    """Compare the SHA-256 of downloaded checkpoints (default: all), or of any file, with the published ones.

    \b
    Examples:
      twins-dense weights verify
      twins-dense weights verify alt_gvt_small.pth     # which published file is this?
    """
    from ..weights.download import sha256_of

    files = [Path(argument) for argument in names_or_files if Path(argument).is_file()]
    names = [argument for argument in names_or_files if not Path(argument).is_file()]
    lost = next((name for name in names if Path(name).suffix in (".pth", ".pt", ".safetensors")), None)
    if lost is not None:
        raise TwinsError(f"weights {lost!r}: no such file; check the path")
    specs = [spec for spec in _chosen(names) if names or spec.path.exists()] if names or not files else []
    if not specs and not files:
        click.echo(f"nothing is downloaded to {cache_dir()}")
    wrong = []
    for spec in specs:
        if not spec.path.exists():
            raise TwinsError(f"{spec.name} is not downloaded: run `twins-dense weights download {spec.name}`")
        digest = sha256_of(spec.path)
        if not digest.startswith(spec.sha256):
            wrong.append(spec)
        click.echo(f"{digest}  {spec.path}  {'WRONG' if spec in wrong else 'ok' if spec.sha256 else 'none published'}")
    for file in files:
        digest = sha256_of(file)
        match = published_as(digest)
        click.echo(f"{digest}  {file}  {match.name if match else 'no published hash'}")
    if wrong:
        raise TwinsError(
            f"{len(wrong)} of {len(specs)} files differ from the published ones: remove them and download them again"
        )


def _chosen(names: list[str] | tuple[str, ...]) -> list[WeightsSpec]:
    """Return the entries that names and patterns select, in the order of the catalog; all entries without names."""
    selected: set[str] = set()
    for name in names:
        selected.update(fnmatch.filter(CATALOG, name) or [get_weights_spec(name).name])
    return [spec for spec in CATALOG.values() if not names or spec.name in selected]
