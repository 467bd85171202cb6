"""Write the results of many images to a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import TwinsError
from .results import Classification, Detections, Result, Segmentation, save_picture

if TYPE_CHECKING:
    from ..data.drawing import ShowLabels

_END = b"\n]\n"  # of predictions.json


def write_results(
    results: Iterable[Result | None], files: Sequence[Path], folder: Path, *, show_labels: ShowLabels = "auto"
) -> Iterator[Result]:
    """Write pictures and `predictions.json` to a folder, and yield each result after it is written.

    Pictures are named after the images, in the same subfolders. For segmentors, label PNGs and `legend.png` are written
    as well. `predictions.json` holds the results so far after each of them, whatever ends the loop.

    Args:
        results: Results of the images, in their order; `None` for an image that is left out.
        files: Paths of the images.
        folder: Folder for the results; it is created.
        show_labels: See `Detections.draw`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.json").open("wb", buffering=0) as entries:
        for result, file, target in zip(results, files, _targets(files, folder), strict=True):
            if result is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _append(entries, _write(result, file, target, show_labels))
            if isinstance(result, Segmentation) and not (folder / "legend.png").exists():
                result.legend().save(folder / "legend.png")
            yield result


def predict_each(
    predict: Callable[[Sequence[Path], int], Iterable[Result]],
    files: Sequence[Path],
    batch_size: int,
    left_out: list[str],
) -> Iterator[Result | None]:
    """Yield the result of each image, or `None` for an image whose prediction fails.

    Args:
        predict: Function that yields the results of files, computed in batches of the given size.
        files: Paths of the images.
        batch_size: Number of images per batch.
        left_out: List that receives one line for each image that failed.
    """
    start, alone = 0, 0  # the next image, and the number of images to predict one by one
    while start < len(files):
        size = 1 if alone else batch_size
        part = files[start : start + alone] if alone else files[start:]
        error = None
        try:
            for result in predict(part, size):
                yield result
                start, alone = start + 1, max(alone - 1, 0)
        except TwinsError as caught:
            error = caught
        if error is not None and size == 1:
            left_out.append(str(error))
            yield None
            start, alone = start + 1, max(alone - 1, 0)
        elif error is not None:  # it can be any image of the batch
            alone = batch_size


def _append(entries: FileIO, entry: dict[str, Any]) -> None:
    """Append an entry to a list in a JSON file. If that fails, the file holds the entries before."""
    text = "\n".join(f" {line}" for line in json.dumps(entry, indent=1).splitlines())
    end = max(entries.tell() - len(_END), 0)
    entries.seek(end)
    try:
        content = memoryview((",\n" if end else "[\n").encode() + text.encode() + _END)
        while content:  # on a full disk, a part may be written
            content = content[entries.write(content) :]
    except BaseException:
        entries.truncate(end)
        entries.seek(end)
        entries.write(_END if end else b"[" + _END)
        raise


def _write(result: Result, file: Path, target: Path, show_labels: ShowLabels) -> dict[str, Any]:
    """Write the pictures of a result, and return its entry in `predictions.json`."""
    height, width = result.image.shape[:2]
    entry: dict[str, Any] = {"file": str(file), "picture": f"{target}.jpg", "height": height, "width": width}
    if isinstance(result, Detections):
        save_picture(result.draw(show_labels), entry["picture"])
        return {**entry, "detections": result.to_coco()}
    if isinstance(result, Classification):
        del entry["picture"]
        named = zip(result.labels.tolist(), result.names, result.probabilities.tolist(), strict=True)
        return {**entry, "classes": [{"label": i, "name": name, "probability": p} for i, name, p in named]}
    save_picture(result.draw(), entry["picture"])
    entry |= {"classes": result.shares, "labels": f"{target}.png"}
    Image.fromarray(result.labels).save(entry["labels"])
    return entry


def _targets(files: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Yield the path of each image's results without a suffix.

    The suffix of the image is kept only in the names of images that would overwrite the results of another one.
    """
    root = Path(os.path.commonpath([file.parent.resolve() for file in files]))
    used = {folder / "legend"}
    for file in files:
        place = folder / (file.parent.resolve() / file.name).relative_to(root)
        target, number = place.with_suffix(""), 1
        while target in used:
            target = place.with_name(f"{place.name}-{number}" if number > 1 else place.name)
            number += 1
        used.add(target)
        yield target
