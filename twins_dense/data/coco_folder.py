"""Find the annotation files and the image folders of data in COCO format, Roboflow's exports included."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import TwinsError
from .coco import read_annotation_file
from .coco_checks import entries_by_id
from .coco_content import CocoContent, CocoSplits

_ROBOFLOW = "_annotations.coco.json"
_PREFIX = "instances_"
_SAMPLE = 20  # images that are looked for in each candidate folder
_ALIASES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "test2017"),
}


def split_of(name: str) -> str | None:
    """Return the split that a name such as "train2017", "valid" or "testing" stands for; `None` for other names."""
    return next((split for split in _ALIASES if name.lower().startswith(split)), None)


def find_coco(root: Path) -> list[Path]:
    """Return the annotation files: `annotations/instances_*.json`, or `annotations/{train,val,test}*.json`."""
    files = sorted(root.glob(f"annotations/{_PREFIX}*.json"))
    return files or [path for path in sorted(root.glob("annotations/*.json")) if split_of(path.stem)]


def find_roboflow(root: Path) -> list[Path]:
    """Return the annotation files `{train,valid,test}/_annotations.coco.json`."""
    return sorted(root.glob(f"*/{_ROBOFLOW}"))


def read_coco(root: Path) -> CocoSplits:
    """Read the annotation files of `find_coco`, and find the folder of the images of each.

    Raises:
        TwinsError: If a file cannot be used, a split has two files, or no folder holds the images.
    """
    named = {path: path.stem.removeprefix(_PREFIX) for path in find_coco(root)}
    splits, notes = _assign(named)
    found = {}
    for split, path in splits.items():
        content = _read(path)
        image_dir = _find_image_dir(root, path, named[path], split, content)
        found[split] = CocoContent(image_dir, content, path)
    return CocoSplits("COCO", found, tuple(notes))


def read_roboflow(root: Path) -> CocoSplits:
    """Read the annotation files of `find_roboflow`. Images are beside them.

    Roboflow adds a category without annotations, which is the supercategory of all others; it is left out.

    Raises:
        TwinsError: If a file cannot be used, or a split has two files.
    """
    splits, notes = _assign({path: path.parent.name for path in find_roboflow(root)})
    found = {split: CocoContent(path.parent, _read(path), path) for split, path in splits.items()}
    contents = [source.content for source in found.values()]
    used = {str(entry.get("category_id")) for content in contents for entry in content["annotations"]}
    parents = {category.get("supercategory") for content in contents for category in content["categories"]}
    dropped = {
        category["id"]: category["name"]
        for category in contents[0]["categories"]
        if category.get("supercategory") == "none" and category["name"] in parents and str(category["id"]) not in used
    }
    if dropped:
        # It often has the name of a real category, so the id tells them apart.
        notes.append(f"Roboflow's category {', '.join(dropped.values())} has no annotations and is left out.")
        for split, source in found.items():
            kept = [category for category in source.content["categories"] if category["id"] not in dropped]
            found[split] = CocoContent(source.image_dir, {**source.content, "categories": kept})
    return CocoSplits("Roboflow COCO", found, tuple(notes))


def _assign(named: dict[Path, str]) -> tuple[dict[str, Path], list[str]]:
    """Return the annotation file of each split, and notes. `named` holds the name after which a file is called."""
    splits: dict[str, Path] = {}
    unknown = [path for path, name in named.items() if split_of(name) is None]
    for path, name in named.items():
        split = split_of(name)
        if split in splits:
            raise TwinsError(f"{splits[split]} and {path.name} are both for {split}; move one of them away")
        if split is not None:
            splits[split] = path
    if splits:
        return splits, [f"{path} is ignored: its name is not that of a split." for path in unknown]
    if len(unknown) > 1:
        raise TwinsError(
            f"{unknown[0].parent}: which of {', '.join(path.name for path in unknown)} is for training? "
            f"Name them {_PREFIX}train.json and {_PREFIX}val.json"
        )
    return {"train": unknown[0]}, []


def _read(path: Path) -> dict[str, Any]:
    content = read_annotation_file(path)
    entries_by_id(path, content, "images", {"file_name": str, "width": int, "height": int})
    entries_by_id(path, content, "categories", {"name": str})
    return content


def _find_image_dir(root: Path, path: Path, name: str, split: str, content: dict[str, Any]) -> Path:
    """Return the folder that holds most of a sample of the images; the first of several such folders."""
    names = dict.fromkeys([name, *_ALIASES[split]])
    candidates = [*names, *(f"images/{name}" for name in names), "images", "data", "."]
    folders = [root / candidate for candidate in candidates if (root / candidate).is_dir()]
    images = content["images"]
    sample = [entry["file_name"] for entry in images[:: max(1, len(images) // _SAMPLE)]]
    counts = [sum(os.path.isfile(folder / file_name) for file_name in sample) for folder in folders]
    if max(counts) == 0:
        looked = ", ".join(f"{candidate}/" for candidate in candidates[:-1])
        raise TwinsError(
            f"{path}: its images, such as {sample[0]}, are neither in {root} nor in one of its folders {looked}"
        )
    return folders[counts.index(max(counts))].resolve()
