"""Files of predictions in common formats, written from the record of an evaluation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic import atomic_path
from ..data.image_files import open_image
from .record import Record

DETECTIONS_NAME = "detections.json"
LABEL_MAPS_NAME = "label_maps"


def write_detections(record: Record, folder: Path) -> Path:
    """Write all detections to `detections.json`, a COCO results file, and return its path.

    Args:
        record: Record of a detector.
        folder: Folder to write to.
    """
    detections = (json.dumps(detection) for entry in record.entries for detection in entry["detections"])
    path = folder / DETECTIONS_NAME
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, line in enumerate(detections):
            file.write(f"{',' if number else ''}\n{line}")
        file.write("\n]\n")
    return path


def write_label_maps(record: Record, folder: Path) -> Path:
    """Write the predicted label maps to the folder `label_maps`, and return its path.

    They have the values and the names of the true label maps, and lie in the same subfolders if there are any.

    Args:
        record: Record of a segmentor.
        folder: Folder to write to.
    """
    out = folder / LABEL_MAPS_NAME
    common = os.path.commonpath([Path(entry["labels"]).parent for entry in record.entries])
    for entry in record.entries:
        with open_image(record.folder / entry["prediction"]) as opened:
            values = np.asarray(opened) + np.asarray(opened).dtype.type(record.about.settings["first_value"])
        path = (out / Path(entry["labels"]).relative_to(common)).with_suffix(".png")
        with atomic_path(path) as temporary:
            Image.fromarray(values).save(temporary, "png")
    return out
