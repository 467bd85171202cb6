"""`twins-dense predict`: run a trained model on images and draw the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import TwinsError
from .options import NumberRange, parse_source

if TYPE_CHECKING:
    from ..inference.results import Result


class ScoreThreshold(click.ParamType):
    """A number in 0..1, or "auto"."""

    name = "float|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            return NumberRange(0, 1).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither a number in 0..1 nor 'auto'", param, ctx)


@click.command("predict", short_help="Run a trained model on images and draw the results.")
@click.argument("arguments", nargs=-1, required=True, metavar="[CONFIG] MODEL IMAGES... [KEY=VALUE]...")
@click.option(
    "--out", default="predictions", show_default=True, help="New folder for the pictures and predictions.json."
)
@click.option(
    "--score",
    default="0.5",
    show_default=True,
    type=ScoreThreshold(),
    help="Score threshold of detectors; 'auto' uses those that the evaluation of the model recommends.",
)
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1), help="Images per batch.")
@click.option("--tile", type=click.IntRange(32), help="Side of overlapping tiles, in pixels.  [default: no tiles]")
@click.option(
    "--overlap",
    default=0.2,
    show_default=True,
    type=NumberRange(0, 0.9),
    help="Overlap of the tiles, as a fraction of their side.",
)
@click.option("--tta", help="Also predict on flipped and resized images, such as 'flip' or 'flip,0.8,1.25'.")
@click.option(
    "--labels",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "none", "all"]),
    help="Which names detectors draw; 'auto' draws those that fit.",
)
@click.option("--device", help="Device to run on, such as cpu or cuda:1.  [default: a GPU if there is one]")
@click.option(
    "--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]), help="Precision."
)
@click.option("--skip-bad", is_flag=True, help="Leave out unreadable images, and list them.")
def command(
    arguments: tuple[str, ...],
    out: str,
    score: float | Literal["auto"],
    batch_size: int,
    tile: int | None,
    overlap: float,
    tta: str | None,
    labels: str,
    device: str | None,
    precision: str,
    skip_bad: bool,
) -> None:
    """Run MODEL on IMAGES: files, folders (including subfolders) and globs.

    MODEL is a work directory of `twins-dense train` (its best checkpoint, else its last), a checkpoint, or the name of
    a published segmentor or classifier. Checkpoints that do not contain their config need CONFIG.

    One picture per image is written, and predictions.json with the file, size and results of every image. Detectors
    draw masks or boxes, names and scores; their results have the format of a COCO results file, plus the class name.
    Segmentors tint the image, write a PNG with the label values of the data set, and legend.png with the colours of the
    classes. The EXIF orientation is applied first, so that pixel coordinates refer to the upright image.

    \b
    Examples:
      twins-dense predict work_dirs/a photo.jpg holiday/ 'more/*.png' --out drawn
      twins-dense predict work_dirs/a/epoch_12.pth aerial.tif --tile 800 --score 0.3
      twins-dense predict work_dirs/a photo.jpg --score auto
      twins-dense predict svt_small.ade20k_upernet-mmseg street.jpg --tta flip
      twins-dense predict CONFIG CHECKPOINT photo.jpg model.min_size=600 --score 0.7
    """
    from tqdm import tqdm

    from ..data.image_lists import find_images
    from ..inference import Detections, load_model
    from ..inference.output import predict_each, write_results
    from ..inference.sources import readable

    source, images, overrides = parse_source(arguments)
    if not images and not overrides:
        raise click.UsageError("Missing argument 'IMAGES...'.")
    folder = Path(out)
    files = find_images(images, out=folder)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise TwinsError(f"output {out!r} is not empty: choose another --out")
    model = load_model(source, device=device, precision=precision, overrides=overrides)  # type: ignore[arg-type]
    files, left_out = readable(files, skip_bad=skip_bad)

    def predict(part: Sequence[Path], size: int) -> Iterator[Result]:
        return model.predict(part, score, size, tile=tile, overlap=overlap, tta=tta)

    results = predict_each(predict, files, batch_size, left_out) if skip_bad else predict(files, batch_size)
    written = write_results(results, files, folder, show_labels=labels)  # type: ignore[arg-type]
    counts: Counter[str] = Counter()
    for result in tqdm(written, desc="predict", unit="image", total=len(files), disable=None):
        counts["images"] += 1
        counts["instances"] += len(result) if isinstance(result, Detections) else 0
    for line in left_out:
        click.echo(f"left out: {line}", err=True)
    if not counts["images"]:
        raise TwinsError(f"no image could be predicted; the first: {left_out[0]}")
    what = f"{counts['instances']} instances in " if model.task == "detection" else ""
    click.echo(f"{what}{counts['images']} images: {folder} contains the pictures and predictions.json")
