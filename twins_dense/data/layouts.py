"""Recognise how a folder of images and annotations is organised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Task = Literal["detection", "segmentation"]


@dataclass(frozen=True)
class Split:
    """The images of one split, and where their annotations are.

    Attributes:
        image_dir: Folder of the images; absolute.
        num_images: Number of images.
        ann_file: For detection, a COCO annotation file whose `file_name` entries are relative to `image_dir`; absolute.
        label_dir: For segmentation, the folder of the label maps; absolute.
        names: For segmentation, a text file with one name (without a suffix) per line that selects images of
            `image_dir`; `None` for all.
        image_suffix: For segmentation, the suffix of the image files, such as ".jpg".
        label_suffix: For segmentation, the suffix of the label maps, such as ".png" or "_L.png".
    """

    image_dir: Path
    num_images: int
    ann_file: Path | None = None
    label_dir: Path | None = None
    names: Path | None = None
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"


@dataclass(frozen=True)
class DataFolder:
    """A recognised folder of images and annotations.

    Attributes:
        root: The folder.
        layout: Name of the layout, such as "COCO" or "YOLO".
        task: "detection" or "segmentation".
        classes: Names of the classes, in the order of the labels.
        splits: Splits by name: "train" and "val", and "test" if there is one.
        has_masks: For detection, whether every instance has a segmentation.
        reduce_zero_label: For segmentation, whether the label maps use 0 for pixels to ignore and 1..K for the classes.
        notes: Sentences about what was assumed or done, such as images that were held out for validation.
    """

    root: Path
    layout: str
    task: Task
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    has_masks: bool = False
    reduce_zero_label: bool = False
    notes: tuple[str, ...] = ()
