"""Survey a data set for its report: contents, problems, suspicious annotations and duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.check import find_label_problems
from ..data.coco import CocoData, is_instance, load_coco
from ..data.duplicates import Pair, SplitImage, find_duplicates
from ..data.label_folders import count_values, spread
from ..data.label_maps import summarise
from ..data.layouts import DataFolder, Split
from ..data.statistics import ObjectStatistics, Suggestion, measure_checked, suggest, suggest_segmentation
from ..data.suspects import Suspect, find_suspects
from ..errors import TwinsError

_MOST_MAPS = 5000  # label maps of a split that are counted, evenly spread


@dataclass(frozen=True)
class ObjectSurvey:
    """Contents of a data set for detection.

    Attributes:
        folder: The data set.
        contents: Checked images and annotations of each split; `problems` says what was left out.
        statistics: Measurements of the objects of each split.
        suspects: Suspicious annotations of each split, by kind, the most suspicious first.
        duplicates: Images that show the same, within and across splits.
        suggestion: Settings that suit the data; `None` if there is no object to train on.
    """

    folder: DataFolder
    contents: Mapping[str, CocoData]
    statistics: Mapping[str, ObjectStatistics]
    suspects: Mapping[str, Sequence[Suspect]]
    duplicates: Sequence[Pair]
    suggestion: Suggestion | None

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """One line per image or annotation that cannot be used, by split."""
        return {name: content.problems for name, content in self.contents.items()}

    def num_without_mask(self) -> int:
        """Return the number of objects without a segmentation."""
        images = (image for content in self.contents.values() for image in content.images)
        objects = (annotation for image in images for annotation in filter(is_instance, image.annotations))
        return sum(not annotation.get("segmentation") for annotation in objects)

    def num_annotated_differently(self) -> int:
        """Return the number of pairs of identical images whose classes or boxes, rounded to pixels, differ."""
        objects = {
            SplitImage(str(image.path), name): sorted(
                (annotation["category_id"], *(round(value) for value in annotation["bbox"]))
                for annotation in filter(is_instance, image.annotations)
            )
            for name, content in self.contents.items()
            for image in content.images
        }
        identical = (pair for pair in self.duplicates if pair.kind != "near")
        return sum(objects[pair.first] != objects[pair.second] for pair in identical)


@dataclass(frozen=True)
class LabelSplitSurvey:
    """Contents of the label maps of a split.

    Attributes:
        images: Path of each image that was counted.
        labels: Path of its label map.
        counts: Number of pixels of each value, int64 (N, 256).
        sizes: Width and height of each label map in pixels, int64 (N, 2).
        num_images: Number of images that can be used; more than N if only a part was counted.
        problems: One line per image or label map that cannot be used.
    """

    images: Sequence[Path]
    labels: Sequence[Path]
    counts: np.ndarray
    sizes: np.ndarray
    num_images: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class LabelSurvey:
    """Contents of a data set for segmentation.

    Attributes:
        folder: The data set.
        splits: Contents of each split.
        duplicates: Images that show the same, within and across splits.
        suggestion: Settings that suit the data.
    """

    folder: DataFolder
    splits: Mapping[str, LabelSplitSurvey]
    duplicates: Sequence[Pair]
    suggestion: Suggestion

    @property
    def first_value(self) -> int:
        """Value of the first class in label maps."""
        return int(self.folder.reduce_zero_label)

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """One line per image that cannot be used, by split."""
        return {name: split.problems for name, split in self.splits.items()}

    def class_pixels(self, split: str) -> np.ndarray:
        """Return the number of pixels of each class in each image of a split, int64 (N, number of classes)."""
        return self.splits[split].counts[:, self.first_value : self.first_value + len(self.folder.classes)]


def survey_objects(folder: DataFolder) -> ObjectSurvey:
    """Check and measure a data set for detection. Images and annotations that cannot be used are left out.

    Raises:
        TwinsError: If an annotation file cannot be used, or nothing is left of a split.
    """
    contents: dict[str, CocoData] = {}
    for name, split in folder.splits.items():
        assert split.ann_file is not None
        contents[name] = _in_order(load_coco(split.ann_file, split.image_dir, skip_bad=True))
    statistics = {name: measure_checked(content) for name, content in contents.items()}
    images = [SplitImage(str(image.path), name) for name, content in contents.items() for image in content.images]
    has_objects = bool(statistics["train"].objects_per_image.any())
    return ObjectSurvey(
        folder=folder,
        contents=contents,
        statistics=statistics,
        suspects={name: find_suspects(content) for name, content in contents.items()},
        duplicates=find_duplicates(images),
        suggestion=suggest(statistics["train"], statistics["val"]) if has_objects else None,
    )


def _in_order(content: CocoData) -> CocoData:
    """Return the data with annotations sorted by id, so that their order in the file does not matter."""
    images = [
        replace(image, annotations=tuple(sorted(image.annotations, key=lambda entry: entry["id"])))
        for image in content.images
    ]
    return replace(content, images=tuple(images))


def survey_labels(folder: DataFolder) -> LabelSurvey:
    """Check and count the label maps of a data set for segmentation. Pairs that cannot be used are left out.

    Raises:
        TwinsError: If nothing is left of a split.
    """
    images: list[SplitImage] = []
    splits: dict[str, LabelSplitSurvey] = {}
    for name, split in folder.splits.items():
        found, usable = _survey_split(folder, split)
        splits[name] = found
        images += [SplitImage(str(path), name) for path in usable]
    train = splits["train"]
    return LabelSurvey(
        folder=folder,
        splits=splits,
        duplicates=find_duplicates(images),
        suggestion=suggest_segmentation(train.num_images, train.sizes),
    )


def _survey_split(folder: DataFolder, split: Split) -> tuple[LabelSplitSurvey, list[Path]]:
    """Return the contents of a split and the paths of all images that can be used."""
    problems = find_label_problems(folder, split)
    paths = [
        (split.image_dir / f"{name}{split.image_suffix}", label)
        for name, label, problem in zip(split.image_names(), split.label_paths(), problems, strict=True)
        if problem is None
    ]
    lines = [problem for problem in problems if problem is not None]
    if not paths:
        raise TwinsError(f"{split.image_dir}: no image is left: {'; '.join(summarise(lines))}")
    counted = spread(paths, _MOST_MAPS)
    counts, sizes = count_values([label for _, label in counted])
    images, labels = zip(*counted, strict=True)
    found = LabelSplitSurvey(images, labels, counts, sizes, len(paths), tuple(map(str, lines)))
    return found, [image for image, _ in paths]


def spread_examples(present: np.ndarray, limit: int) -> list[int]:
    """Choose images that show all classes, as far as the limit allows; return their indices in ascending order.

    In each round, every class adds one image that it is in, the rarest classes first. The images of a class are taken
    in steps of the golden ratio, which spreads them evenly over the data set.

    Args:
        present: Whether each image shows each class, bool (N, K).
        limit: Largest number of images.
    """
    members = [np.flatnonzero(column) for column in present.T]
    order = sorted((label for label, found in enumerate(members) if len(found)), key=lambda label: len(members[label]))
    chosen: set[int] = set()
    for turn in range(limit):
        for label in order:
            found = members[label]
            if len(chosen) < limit and turn < len(found):
                place = int((0.5 + turn * 0.618034) % 1 * len(found))
                chosen.add(int(found[place]))
    return sorted(chosen)
