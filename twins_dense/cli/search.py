"""`twins-dense search`: find similar images and near duplicates in a feature folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ..errors import TwinsError
from .options import NumberRange, device_option, find_device


@click.command("search", short_help="Find similar images and near duplicates in a feature folder.")
@click.argument("folder", metavar="DIR")
@click.argument("queries", metavar="[QUERY]...", nargs=-1)
@click.option("-k", "count", default=12, show_default=True, type=click.IntRange(min=1), help="Neighbours per query.")
@click.option("--level", help="Level to compare.  [default: the coarsest one]")
@click.option(
    "--duplicates",
    metavar="COSINE",
    type=NumberRange(min=0, max=1, min_open=True),
    help="List groups of images whose cosine is at least this, such as 0.98, instead of neighbours.",
)
@click.option("--weights", help="Weights that computed the features, for queries that are not in DIR.")
@click.option("--out", metavar="PNG", help="Contact sheet to write.")
@click.option("--html", "page", metavar="HTML", help="Page to write, which needs no other file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@device_option
def command(
    folder: str,
    queries: tuple[str, ...],
    count: int,
    level: str | None,
    duplicates: float | None,
    weights: str | None,
    out: str | None,
    page: str | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Find the images of DIR that are most similar to each QUERY, by the cosine of their pooled vectors.

    DIR is a folder of `twins-dense extract --pool mean`. QUERY is an image id of DIR or an image file. The search is
    exact. Image files need the weights that computed the features, which are found by their SHA-256 if the catalog has
    them.

    \b
    Examples:
      twins-dense search vectors photos/cat.jpg --out similar.png
      twins-dense search vectors new.jpg -k 5 --level c4 --weights svt_small.pth --html similar.html
      twins-dense search vectors --duplicates 0.98 --json
    """
    from ..atomic import write_atomically
    from ..features import open_features, optional_packages

    if bool(queries) == (duplicates is not None):
        raise click.UsageError("Give either one or more queries, or --duplicates.")
    if out is not None and not out.lower().endswith(".png"):
        raise TwinsError(f"--out {out!r}: a contact sheet is a PNG file, name it *.png")
    with optional_packages():
        from ..features.sheet import Result, draw_sheet, page_of
    features = open_features(folder)
    search = features.vector_search(level)
    if not features.complete:
        click.echo(f"{folder} is not complete: searching the {len(features)} images that are finished", err=True)
    results: list[Result] = []
    content: dict[str, object] = {"level": search.level}
    if duplicates is not None:
        groups = search.duplicates(duplicates)
        content |= {"threshold": duplicates, "groups": groups}
        for number, group in enumerate(groups, 1):
            paths = features.select(group).index["path"].to_pylist()
            results.append(Result(f"group {number}: {len(group)} images", None, paths, group))
    else:
        target = str(find_device(device))
        found = {
            query: features.search(query, count, search.level, weights=weights, device=target) for query in queries
        }
        content["queries"] = [{"query": query, **dataclasses.asdict(near)} for query, near in found.items()]
        for query, near in found.items():
            path = features.entry(features.position_of(query))["path"] if query in features else query
            captions = [f"{score:.3f}  {image_id}" for score, image_id in zip(near.scores, near.ids, strict=True)]
            results.append(Result(query, path, near.paths, captions))
    if as_json:
        click.echo(json.dumps(content, indent=1))
    else:
        for result in results:
            click.echo(result.title)
            for caption in result.captions:
                click.echo(f"  {caption}")
        if not results:
            click.echo(f"no two images of {folder} have a cosine of {duplicates} or more")
    if out is not None and results:
        import io

        buffer = io.BytesIO()
        draw_sheet(results).save(buffer, "PNG")
        write_atomically(Path(out), buffer.getvalue())
    if page is not None:
        write_atomically(Path(page), page_of(results, f"Search in {folder}, level {search.level}").encode())
