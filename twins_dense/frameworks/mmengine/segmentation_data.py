"""mmsegmentation's data sets with what a run needs: checked files, and augmentation that depends on a seed alone."""

from __future__ import annotations

import os
from typing import Any

from mmseg import datasets

from ...data.label_maps import find_problems, summarise
from ...errors import TwinsError
from ...seeds import seeded


class SegmentationDataset(datasets.BaseSegDataset):
    """Images and label maps in ADE20K's layout; arguments as of mmseg's `BaseSegDataset`, and `skip_bad`.

    All files are looked at when it is built: an image without its label, a label of another size, with a palette or
    with values outside the classes raises, or, with `skip_bad`, is left out and listed.

    Values of labels are classes 0..K-1 and 255, which is ignored; with `reduce_zero_label` they are 1..K, and 0 is
    ignored as well.

    Attributes:
        source: what messages call it.
        problems: a line for each thing that was left out.
    """

    def __init__(self, *arguments: Any, skip_bad: bool = False, **options: Any) -> None:
        self.skip_bad = skip_bad
        self.problems: tuple[str, ...] = ()
        super().__init__(*arguments, **options)

    @property
    def source(self) -> str:
        return str(self.data_prefix.get("img_path") or self.data_root)

    def filter_data(self) -> list[dict[str, Any]]:
        """The entries whose files can be used, out of the first `indices`."""
        entries = super().filter_data()
        if not entries:
            raise TwinsError(
                f"{self.source} holds no image *{self.img_suffix}: check data_root, data_prefix, img_suffix"
            )
        if isinstance(self._indices, int):
            entries = entries[: self._indices]
        pairs = [(entry["img_path"], entry["seg_map_path"]) for entry in entries]
        found = find_problems(pairs, self._label_values())
        problems = [problem for problem in found if problem is not None]
        lines = "; ".join(summarise(problems))
        if problems and not self.skip_bad:
            raise TwinsError(f"{self.source}: {lines}. Mend the files, or add --skip-bad to go on without them")
        if len(problems) == len(entries):
            raise TwinsError(f"{self.source}: no image left to use: {lines}")
        self.problems = tuple(map(str, problems))
        return [entry for entry, problem in zip(entries, found, strict=True) if problem is None]

    def load_data_list(self) -> list[dict[str, Any]]:
        """As in mmseg, for folders and files that exist."""
        if not self._metainfo.get("classes"):
            raise TwinsError(f"the data set {self.source} has no classes: name them in metainfo=dict(classes=(…))")
        paths = [self.data_prefix.get("img_path"), self.data_prefix.get("seg_map_path"), self.ann_file or None]
        for path in filter(None, paths):
            if not os.path.exists(path):
                raise TwinsError(f"{path}: no such folder or file; check --data-root and the data set's paths")
        return super().load_data_list()

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """The sample of an index, or of an (index, seed) pair: then augmentation depends on that seed alone."""
        if isinstance(key, tuple):
            with seeded(key[1]):
                return super().__getitem__(key[0])
        return super().__getitem__(key)

    def _label_values(self) -> set[int]:
        # With classes picked out of METAINFO's, labels still number all of those.
        num_classes = len(self.METAINFO["classes"] if self.label_map else self._metainfo["classes"])
        return {*range(num_classes + self.reduce_zero_label), self.ignore_index}


class ADE20KDataset(SegmentationDataset):
    """ADE20K's 150 classes: labels are 1..150, and 0, everything else, is ignored."""

    METAINFO = datasets.ADE20KDataset.METAINFO

    def __init__(self, *arguments: Any, reduce_zero_label: bool = True, **options: Any) -> None:
        super().__init__(*arguments, reduce_zero_label=reduce_zero_label, **options)
