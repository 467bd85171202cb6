"""Recognise how a folder of images and annotations is organised."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..atomic import write_atomically
from ..errors import TwinsError
from .coco import is_instance
from .coco_content import CocoContent, CocoSplits, choose_held_out, hold_out, write_content
from .coco_folder import find_coco, find_roboflow, read_coco, read_roboflow
from .image_files import is_inside
from .label_folders import LabelSplit, find_classes, find_label_folders, read_label_folders
from .pascal_voc import find_pascal_voc, read_pascal_voc
from .problems import data_error
from .yolo import find_yolo, read_yolo

Task = Literal["detection", "segmentation"]

_ORDER = ("train", "val", "test")
_NUM_SHOWN = 8


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

    def image_names(self) -> list[str]:
        """Return the names of the images without the suffix, for segmentation; sorted."""
        if self.names is not None:
            return self.names.read_text(encoding="utf-8").splitlines()
        paths = self.image_dir.rglob(f"*{self.image_suffix}")
        return sorted(path.relative_to(self.image_dir).as_posix().removesuffix(self.image_suffix) for path in paths)

    def label_paths(self) -> list[Path]:
        """Return the path of the label map of each image, for segmentation, in the order of `image_names`."""
        assert self.label_dir is not None
        return [self.label_dir / f"{name}{self.label_suffix}" for name in self.image_names()]


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
        problems: One line per image or annotation that was left out, because it cannot be used.
    """

    root: Path
    layout: str
    task: Task
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    has_masks: bool = False
    reduce_zero_label: bool = False
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class _Reader(NamedTuple):
    """How a layout is found and read: `find` returns the files that show it, an empty list if there are none."""

    layout: str
    looked_for: str
    find: Callable[[Path], list[Path]]
    read: Callable[[Path], CocoSplits] | None  # `None` for label maps


_READERS = (
    _Reader("COCO", "annotations/instances_*.json", find_coco, read_coco),
    _Reader("Roboflow COCO", "train/_annotations.coco.json", find_roboflow, read_roboflow),
    _Reader("YOLO", "data.yaml or classes.txt", find_yolo, read_yolo),
    _Reader("Pascal VOC", "Annotations/*.xml", find_pascal_voc, read_pascal_voc),
    _Reader("label maps", "images/ beside annotations/, labels/ or masks/ with *.png", find_label_folders, None),
)


def recognise(
    root: str | Path, *, out: str | Path, holdout: float = 0.1, seed: int = 0, skip_bad: bool = False
) -> DataFolder:
    """Recognise the layout of a folder of images and annotations, and make its splits ready for training.

    Detection data in other formats than COCO is converted to COCO annotation files below `out`. If there are no
    validation images, a fraction of the training images is held out, which depends only on file names and the seed.
    The same folder and seed give the same files, byte by byte.

    Args:
        root: Folder of the data set. If it contains nothing but another folder, that folder is used.
        out: Folder for files that have to be written; created if necessary.
        holdout: Fraction of the training images to hold out for validation if there are none.
        seed: Seed of the choice of these images.
        skip_bad: Whether to leave out annotations in other formats than COCO that cannot be read, instead of raising
            an error. COCO files are checked later, by `load_coco`.

    Raises:
        TwinsError: If no layout is recognised, if several are, or if the files cannot be used.
        DataError: If single annotations or images cannot be read and `skip_bad` is false.
    """
    root, out = Path(root).resolve(), Path(out).resolve()
    if not 0 < holdout < 1:
        raise TwinsError(f"holdout={holdout}: give a fraction between 0 and 1, such as 0.1")
    if not root.is_dir():
        raise TwinsError(f"data {str(root)!r}: no such folder; give the folder of the images and annotations")
    folder, reader = _find_reader(root)
    if reader.read is None:
        return _segmentation_folder(folder, out, holdout, seed)
    found = reader.read(folder)
    if found.problems and not skip_bad:
        raise data_error(root, found.problems, "fix the files, or use --skip-bad to leave these out")
    return _detection_folder(folder, found, out, holdout, seed)


def _find_reader(root: Path) -> tuple[Path, _Reader]:
    """Return the folder and the reader of its layout. Descend into a folder that is the only one in its parent."""
    folder = root
    while True:
        matches = [(reader, files[0]) for reader in _READERS if (files := reader.find(folder))]
        if len(matches) > 1:
            both = " and ".join(f"{reader.layout} ({file.relative_to(folder)})" for reader, file in matches)
            raise TwinsError(f"data {str(folder)!r} could be {both}: move one of them to another folder")
        if matches:
            return folder, matches[0][0]
        entries = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
        folders = [path for path in entries if path.is_dir()]
        if len(folders) != 1:
            break
        folder = folders[0]
    looked_for = ", ".join(f"{reader.looked_for} ({reader.layout})" for reader in _READERS)
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    shown = ", ".join(names[:_NUM_SHOWN]) + (", …" if len(names) > _NUM_SHOWN else "")
    raise TwinsError(f"data {str(root)!r} is not recognised: it contains {shown or 'nothing'}; looked for {looked_for}")


def _detection_folder(root: Path, found: CocoSplits, out: Path, holdout: float, seed: int) -> DataFolder:
    splits, notes = dict(found.splits), list(found.notes)
    source = _split_to_divide(splits)
    if source is not None:
        num_images = splits[source].num_images
        splits["train"], splits["val"] = hold_out(splits.pop(source), holdout, seed)
        notes.append(_held_out_note(source, splits["val"].num_images, num_images, seed))
    for name in splits.keys() - {"train"}:
        # VOC's evaluation ignores difficult objects, and COCO's evaluation ignores crowds.
        for entry in splits[name].content["annotations"]:
            if splits[name].ann_file is None and "difficult" in entry:
                entry["iscrowd"] = 1
    _check_categories(splits)
    paths = {name: _image_paths(split) for name, split in splits.items()}
    inside = (path for name in splits for path in paths[name] if is_inside(path, splits[name].image_dir))
    _check_out(out, {path.parent for path in inside})
    shared = paths["train"] & paths["val"]
    if shared:
        notes.append(f"Images in both train and val: {len(shared)}. The scores will look better than they are.")
    written = {name: write_content(splits[name], out / f"instances_{name}.json") for name in _ORDER if name in splits}
    instances = [entry for split in written.values() for entry in split.content["annotations"] if is_instance(entry)]
    return DataFolder(
        root=root,
        layout=found.layout,
        task="detection",
        classes=tuple(category["name"] for category in _categories(written["train"])),
        splits={
            name: Split(image_dir=split.image_dir, num_images=split.num_images, ann_file=split.ann_file)
            for name, split in written.items()
        },
        has_masks=bool(instances) and all(entry.get("segmentation") for entry in instances),
        notes=tuple(notes),
        problems=found.problems,
    )


def _segmentation_folder(root: Path, out: Path, holdout: float, seed: int) -> DataFolder:
    layout, found = read_label_folders(root)
    classes, reduce_zero_label, reason = find_classes(root, layout, list(found.values()))
    notes = [reason]
    notes += [
        f"Images of {name} without a label map are left out: {split.num_unlabelled}."
        for name, split in found.items()
        if split.num_unlabelled
    ]
    _check_out(out, {folder for split in found.values() for folder in (split.image_dir, split.label_dir)})
    lists = {name: split.names if split.num_unlabelled else None for name, split in found.items()}
    source = _split_to_divide(found)
    if source is not None:
        names = found[source].names
        held_out = choose_held_out(names, holdout, seed)
        notes.append(_held_out_note(source, len(held_out), len(names), seed))
        found["train"] = found["val"] = found.pop(source)
        lists.pop(source)
        lists["train"] = tuple(name for name in names if name not in held_out)
        lists["val"] = tuple(name for name in names if name in held_out)
    return DataFolder(
        root=root,
        layout=layout,
        task="segmentation",
        classes=classes,
        splits={name: _label_split(found[name], lists[name], out / f"{name}.txt") for name in _ORDER if name in found},
        reduce_zero_label=reduce_zero_label,
        notes=tuple(notes),
    )


def _label_split(source: LabelSplit, names: tuple[str, ...] | None, path: Path) -> Split:
    """Return a split; write the list of its names unless it has all images of the folder."""
    if names is not None:
        write_atomically(path, "".join(f"{name}\n" for name in names).encode())
    return Split(
        image_dir=source.image_dir,
        num_images=len(source.names if names is None else names),
        label_dir=source.label_dir,
        names=None if names is None else path,
        image_suffix=source.image_suffix,
        label_suffix=source.label_suffix,
    )


def _split_to_divide(splits: Container[str]) -> str | None:
    """Return the split of which a part has to be held out; `None` if there are training and validation images."""
    if "train" in splits and "val" in splits:
        return None
    return next(name for name in _ORDER if name in splits)


def _held_out_note(source: str, num_held_out: int, num_images: int, seed: int) -> str:
    missing = "training" if source == "val" else "validation"
    return (
        f"There are no {missing} images: {num_held_out} of the {num_images} images of {source} are held out for "
        f"validation (seed {seed})."
    )


def _categories(split: CocoContent) -> list[dict[str, Any]]:
    return sorted(split.content["categories"], key=lambda category: category["id"])


def _check_categories(splits: Mapping[str, CocoContent]) -> None:
    """Raise `TwinsError` unless all splits have the same categories, with the same ids."""
    names = {
        split: [(category["id"], category["name"]) for category in _categories(content)]
        for split, content in splits.items()
    }
    for split, found in names.items():
        if found != names["train"]:
            pair = next((a, b) for a, b in zip_longest(names["train"], found) if a != b)
            raise TwinsError(
                f"the splits train and {split} have different categories, such as {pair[0]} and {pair[1]} (id and "
                "name): give both files the same categories"
            )


def _image_paths(split: CocoContent) -> set[Path]:
    return {split.image_dir / entry["file_name"] for entry in split.content["images"]}


def _check_out(out: Path, image_folders: set[Path]) -> None:
    inside = next((folder for folder in image_folders if out.is_relative_to(folder)), None)
    if inside is not None:
        raise TwinsError(f"{out} is inside {inside}, a folder of images: choose another work directory")
