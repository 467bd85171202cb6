"""mmsegmentation's data sets, with all files checked first and augmentation that depends only on a seed."""

from __future__ import annotations

import os
from typing import Any

from mmseg import datasets

from ...data.label_maps import find_problems, summarise
from ...data.problems import DataError
from ...errors import TwinsError
from .samplers import SeededItems


class SegmentationDataset(SeededItems, datasets.BaseSegDataset):
    """Images and label maps in ADE20K's layout.

    All files are checked when the data set is built. An image without a label map, or whose label map has a different
    size, a palette or values that are not classes, raises `TwinsError`, or is left out and listed if `skip_bad` is
    true.

    Label maps hold the classes 0..K-1, and 255 for pixels to ignore. With `reduce_zero_label`, the classes are 1..K,
    and 0 is ignored as well.

    Args:
        arguments: Arguments of mmseg's `BaseSegDataset`.
        skip_bad: Whether to leave out and list unusable images instead of raising an error.
        allow_outside: Whether the list of images may name files outside the folders of the images and label maps.
        options: Keyword arguments of mmseg's `BaseSegDataset`.

    Attributes:
        source: The folder of the images, for messages.
        problems: One line for each image that was left out.
    """

    def __init__(self, *arguments: Any, skip_bad: bool = False, allow_outside: bool = False, **options: Any) -> None:
        self.skip_bad = skip_bad
        self.allow_outside = allow_outside
        self.problems: tuple[str, ...] = ()
        super().__init__(*arguments, **options)

    @property
    def source(self) -> str:
        return str(self.data_prefix.get("img_path") or self.data_root)

    def filter_data(self) -> list[dict[str, Any]]:
        """Return the entries with usable files among the first `indices`."""
        entries = super().filter_data()
        if not entries:
            raise TwinsError(
                f"{self.source} contains no *{self.img_suffix} images: check data_root, data_prefix and img_suffix"
            )
        if isinstance(self._indices, int):
            entries = entries[: self._indices]
        pairs = [(entry["img_path"], entry["seg_map_path"]) for entry in entries]
        folders = None if self.allow_outside else (self.data_prefix["img_path"], self.data_prefix["seg_map_path"])
        found = find_problems(pairs, self._label_values(), folders=folders)
        problems = [problem for problem in found if problem is not None]
        lines = "; ".join(summarise(problems))
        if problems and not self.skip_bad:
            message = f"{self.source}: {lines}. Fix the files, or add --skip-bad to leave them out"
            raise DataError(message, list(map(str, problems)))
        if len(problems) == len(entries):
            raise TwinsError(f"{self.source}: no usable image is left: {lines}")
        self.problems = tuple(map(str, problems))
        return [entry for entry, problem in zip(entries, found, strict=True) if problem is None]

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the entries as mmseg does, but raise `TwinsError` for missing classes, folders or files."""
        if not self.metainfo.get("classes"):
            raise TwinsError(f"the data set {self.source} has no classes: set metainfo=dict(classes=(…))")
        paths = [self.data_prefix.get("img_path"), self.data_prefix.get("seg_map_path"), self.ann_file or None]
        for path in filter(None, paths):
            if not os.path.exists(path):
                raise TwinsError(f"{path}: no such folder or file; check --data-root and the paths of the data set")
        return super().load_data_list()

    def _label_values(self) -> set[int]:
        # If a config selects some of the classes in METAINFO, label maps are still numbered by all of them.
        num_classes = len(self.METAINFO["classes"] if self.label_map else self.metainfo["classes"])
        return {*range(num_classes + self.reduce_zero_label), self.ignore_index}


class ADE20KDataset(SegmentationDataset):
    """ADE20K with 150 classes, stored as 1..150 in label maps; 0 stands for everything else and is ignored."""

    METAINFO = datasets.ADE20KDataset.METAINFO

    def __init__(self, *arguments: Any, reduce_zero_label: bool = True, **options: Any) -> None:
        super().__init__(*arguments, reduce_zero_label=reduce_zero_label, **options)
