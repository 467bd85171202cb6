"""Records of evaluations of segmentors and classifiers that are written by hand, and the tables of their reports."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twins_dense.evaluation.record import About, Record, RecordWriter, read_record


def segmentation_record(
    folder: Path,
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    *,
    confidences: Sequence[np.ndarray] | None = None,
    first_value: int = 0,
) -> Record:
    """Write images of noise, label maps with their values on disk, and a record of predictions 0..K-1; read it."""
    random = np.random.default_rng(0)
    palette = random.integers(256, size=(len(classes), 3)).tolist()
    settings = {"palette": palette, "first_value": first_value, "ignore_index": 255}
    about = About("segmentation", list(classes), len(truths), "abc", "a.pth", "streets", settings, engine="mmengine")
    for name in ("images", "labels", "record/maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder, about) as writer:
        for index, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
            height, width = truth.shape
            image, labels = folder / "images" / f"{index}.png", folder / "labels" / f"{index}.png"
            Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8)).save(image)
            Image.fromarray(truth.astype(np.uint8)).save(labels)
            Image.fromarray(prediction.astype(np.uint8)).save(folder / "record" / "maps" / f"{index}.png")
            entry: dict[str, Any] = {"index": index, "file": str(image), "height": height, "width": width}
            entry |= {"labels": str(labels), "prediction": f"maps/{index}.png"}
            if confidences is not None:
                Image.fromarray(confidences[index]).save(folder / "record" / "maps" / f"{index}-confidence.png")
                entry["confidence"] = f"maps/{index}-confidence.png"
            writer.add(entry)
    return read_record(folder)


def classification_record(
    folder: Path,
    labels: Sequence[int],
    tops: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    classes: Sequence[str],
    *,
    unreadable: Sequence[str] = (),
) -> Record:
    """Write an image of noise and a record of its predictions and of images that could not be read; read it."""
    image = folder / "image.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(256, size=(23, 31, 3), dtype=np.uint8)).save(image)
    settings = {"wnids": [f"n{index:08}" for index in range(len(classes))], "protocol": "official"}
    about = About("classification", list(classes), len(labels) + len(unreadable), "abc", "a.pth", "photos", settings)
    with RecordWriter(folder, about) as writer:
        for index, (label, top, values) in enumerate(zip(labels, tops, probabilities, strict=True)):
            entry = {"index": index, "file": str(image), "label": label, "top": list(top)}
            writer.add({**entry, "probabilities": list(values), "loss": 1.0})
        for index, error in enumerate(unreadable, len(labels)):
            writer.add({"index": index, "file": f"{index}.png", "label": 0, "error": error})
    return read_record(folder)


def cells(page: str, table: str) -> list[list[str]]:
    """Return the text of the cells of each row of a table, without its header."""
    (found,) = re.findall(rf'<table id="{table}".*?</table>', page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)[1:]
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in found]
