"""`twins-dense predict`: run a trained model on images and draw the results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError, one_line


@click.command("predict", short_help="Run a trained model on images and draw the results.")
@click.argument("config")
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES... [KEY=VALUE]...")
@click.option(
    "--out", default="predictions", show_default=True, help="New folder for the pictures and predictions.json."
)
@click.option(
    "--score", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Score threshold of detectors."
)
@click.option("--skip-bad", is_flag=True, help="Leave out unreadable images, and list them.")
def command(config: str, checkpoint: str, images: tuple[str, ...], out: str, score: float, skip_bad: bool) -> None:
    """Run CHECKPOINT, from a training run of CONFIG, on IMAGES: files, folders (including subfolders) and globs.

    One picture per image is written, and predictions.json with the file, size and results of every image. Detectors
    draw boxes, masks, names and scores; their results have the format of a COCO results file, plus the class name.
    Segmentors tint the image, write a PNG with the label values of the data set, and legend.png with the colours of the
    classes. The EXIF orientation is applied first, so that pixel coordinates refer to the upright image.

    \b
    Examples:
      twins-dense predict CONFIG work_dirs/a/epoch_12.pth photo.jpg holiday/ 'more/*.png' --out drawn
      twins-dense predict CONFIG CHECKPOINT photo.jpg model.min_size=600 --score 0.7
    """
    from PIL import Image
    from tqdm import tqdm

    from ..atomic import write_atomically
    from ..data.image_files import read_image
    from ..data.image_lists import find_images
    from ..frameworks import open_config
    from ..frameworks.prediction import SegmentationPrediction

    overrides = [argument for argument in images if "=" in argument and not Path(argument).exists()]
    folder = Path(out)
    files = find_images([argument for argument in images if argument not in overrides], out=folder)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise TwinsError(f"output {out!r} is not empty: choose another --out")
    engine, loaded = open_config(config, overrides)
    files, left_out = _readable(files, skip_bad)
    predictor = engine.load_predictor(loaded, checkpoint, score)

    results: list[dict[str, Any]] = []
    root = Path(os.path.commonpath([file.parent.resolve() for file in files]))
    for file in tqdm(files, desc="predict", unit="image", disable=None):
        array = read_image(file, upright=True)
        prediction = predictor(array)
        target = folder / (file.parent.resolve() / file.name).relative_to(root).with_suffix(file.suffix + ".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prediction.picture).save(target, quality=92)
        height, width = array.shape[:2]
        result = {"file": str(file), "picture": str(target), "height": height, "width": width}
        if isinstance(prediction, SegmentationPrediction):
            result["classes"], result["labels"] = prediction.shares, str(target.with_suffix(".png"))
            Image.fromarray(prediction.labels).save(result["labels"])
        else:
            result["detections"] = prediction.detections
        results.append(result)
    if predictor.legend is not None:
        Image.fromarray(predictor.legend).save(folder / "legend.png")
    write_atomically(folder / "predictions.json", json.dumps(results, indent=1).encode() + b"\n")
    for line in left_out:
        click.echo(f"left out: {line}", err=True)
    instances = [instance for result in results for instance in result.get("detections", ())]
    what = f"{len(instances)} instances in " if predictor.legend is None else ""
    click.echo(f"{what}{len(results)} images: {folder} contains the pictures and predictions.json")


def _readable(files: list[Path], skip_bad: bool) -> tuple[list[Path], list[str]]:
    """Check all images before predicting; return the readable ones, and one line per image that is left out."""
    from ..data.image_files import UNREADABLE, check_image

    good, left_out = [], []
    for file in files:
        try:
            check_image(file)
            good.append(file)
        except UNREADABLE as error:
            line = f"image {file} cannot be read ({one_line(error)})"
            if not skip_bad:
                raise TwinsError(f"{line}: replace it, or add --skip-bad to leave it out") from None
            left_out.append(line)
    if not good:
        raise TwinsError(f"none of the images can be read; the first: {left_out[0]}")
    return good, left_out
