"""Write the results of many images to a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..atomic import atomic_path
from .results import Classification, Detections, Result, Segmentation, save_picture

if TYPE_CHECKING:
    from ..data.drawing import ShowLabels


def write_results(
    results: Iterable[Result], files: Sequence[Path], folder: Path, *, show_labels: ShowLabels = "auto"
) -> Iterator[Result]:
    """Write pictures and `predictions.json` to a folder, and yield each result after it is written.

    Pictures are named after the images, in the same subfolders. For segmentors, label PNGs and `legend.png` are written
    as well. `predictions.json` appears once all results are written.

    Args:
        results: Results of the images, in their order.
        files: Paths of the images.
        folder: Folder for the results; it is created.
        show_labels: See `Detections.draw`.
    """
    with atomic_path(folder / "predictions.json") as temporary, temporary.open("w", encoding="utf-8") as entries:
        for number, (result, file, target) in enumerate(zip(results, files, _targets(files, folder), strict=True)):
            target.parent.mkdir(parents=True, exist_ok=True)
            entry = json.dumps(_write(result, file, target, show_labels), indent=1)
            entries.write(",\n" if number else "[\n")
            entries.write("\n".join(f" {line}" for line in entry.splitlines()))
            if number == 0 and isinstance(result, Segmentation):
                result.legend().save(folder / "legend.png")
            yield result
        entries.write("\n]\n")


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
