"""Read data in YOLO format: `data.yaml`, and one text file of normalised boxes or polygons per image.

The rules are those of Ultralytics (`check_det_dataset`, `img2label_paths` and `verify_image_label`). Coordinates are
fractions of the upright image. We read the files ourselves, because supervision, the usual library for this, rounds
polygons to whole pixels and draws them as masks.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import TwinsError, one_line, requires_extra
from .coco_content import CocoContent, CocoSplits, box_annotation, build_content, polygon_annotation
from .coco_folder import split_of
from .image_files import IMAGE_SUFFIXES, NUM_THREADS, UNREADABLE, exif_orientation, open_image
from .image_lists import read_lines

_TOLERANCE = 0.01  # by which coordinates may exceed the image, as in Ultralytics; they are clipped
_STEMS = ("data", "dataset")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Maps a point of the upright image to the stored one, by EXIF orientation; both as fractions of width and height.
_STORED = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (y, 1 - x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (1 - y, x),
}


def find_yolo(root: Path) -> list[Path]:
    """Return `data.yaml`, or other YAML files with class names and training images, or `classes.txt` beside labels."""
    files = [path for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if _is_description(path)]
    preferred = [path for path in files if path.stem in _STEMS]
    if files:
        return preferred or files
    labels = next((path for path in root.glob("labels/**/*.txt") if path.name != "classes.txt"), None)
    return [path for path in (root / "classes.txt", root / "labels/classes.txt") if labels and path.is_file()]


def read_yolo(root: Path) -> CocoSplits:
    """Read all splits of a YOLO data set.

    Raises:
        TwinsError: If the description cannot be used, or no image or no label file is found.
    """
    files = find_yolo(root)
    if len(files) > 1:
        raise TwinsError(f"{root}: which of {', '.join(path.name for path in files)} describes the data? Keep one")
    description = _read_description(files[0])
    classes = _class_names(files[0], description)
    has_keypoints = "kpt_shape" in description
    images = {split: paths for split, paths in _find_images(root, files[0], description).items() if paths}
    if not images:
        raise TwinsError(f"{files[0]}: no images are found for train, val and test; check its paths")
    paths = [path for split_paths in images.values() for path in split_paths]
    num_unlabelled = sum(not os.path.isfile(_label_path(path)) for path in paths)
    if num_unlabelled == len(paths):
        raise TwinsError(f"{files[0]}: no label files: looked for {_label_path(paths[0])} and {len(paths) - 1} others")
    folders = {path.parent for path in paths}
    image_dir = root if all(folder.is_relative_to(root) for folder in folders) else Path(os.path.commonpath(folders))
    problems: list[str] = []
    splits = {}
    for split, split_paths in images.items():
        entries = []
        for path, result in zip(split_paths, _read_all(split, split_paths, len(classes), has_keypoints), strict=True):
            (width, height), annotations, found = result
            problems += found
            if width:
                entries.append((path.relative_to(image_dir).as_posix(), width, height, annotations))
        splits[split] = CocoContent(image_dir, build_content(entries, classes))
    notes = []
    if num_unlabelled:
        notes.append(
            f"{num_unlabelled} of {len(paths)} images have no label file, and count as images without objects."
        )
    objects = [entry for source in splits.values() for entry in source.content["annotations"]]
    num_boxes = sum(not entry["segmentation"] for entry in objects)
    if 0 < num_boxes < len(objects):
        notes.append(f"{num_boxes} of {len(objects)} objects have a box only, so that masks cannot be trained.")
    if has_keypoints:
        notes.append("Keypoints are ignored.")
    return CocoSplits("YOLO", splits, tuple(notes), tuple(problems))


def _is_description(path: Path) -> bool:
    try:
        content = _read_yaml(path)
    except TwinsError:
        return path.stem in _STEMS  # `read_yolo` repeats the error
    if not isinstance(content, dict):
        return False
    # A file of the usual name is one even if it is incomplete.
    wanted = content.keys() & {"names", "nc", "train"}
    return bool(wanted) if path.stem in _STEMS else {"names", "train"} <= wanted


def _read_description(path: Path) -> dict[str, Any]:
    """Return the content of a description. If it names no folders, the usual ones are filled in."""
    if path.suffix == ".txt":
        description: Any = {"names": read_lines(path)}
    else:
        description = _read_yaml(path)
    if any(key in description for keys in _SPLITS.values() for key in keys):
        return description
    root = path.parent.parent if path.parent.name == "labels" else path.parent
    places = [place for pattern in ("images/*", "*/images") for place in sorted(root.glob(pattern)) if place.is_dir()]
    folders = {split_of(_split_part(place)): place.relative_to(root).as_posix() for place in places}
    folders.pop(None, None)
    return {**description, **(folders or {"train": "images"})}


def _split_part(place: Path) -> str:
    return place.parent.name if place.name == "images" else place.name


def _read_yaml(path: Path) -> Any:
    with requires_extra("detection"):
        import yaml
    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise TwinsError(f"{path} is not valid YAML ({one_line(error)}); fix the file") from None


def _class_names(path: Path, description: Mapping[str, Any]) -> list[str]:
    """Return the class names, which a description holds as a list, or as a mapping from 0, 1, … to names."""
    names = description.get("names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise TwinsError(f"{path}: names has the keys {reprlib.repr(list(names))}; number them from 0 without gaps")
        by_index = {int(key): name for key, name in names.items()}
        names = [by_index[index] for index in range(len(by_index))]
    if not isinstance(names, list) or not names:
        raise TwinsError(f"{path}: names is {reprlib.repr(names)}; list the names of the classes")
    count = description.get("nc", len(names))
    if count != len(names):
        raise TwinsError(f"{path}: nc is {count}, but there are {len(names)} names; make them agree")
    return [str(name) for name in names]


def _find_images(root: Path, file: Path, description: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return the images of each split, sorted by path."""
    base = root / str(description.get("path") or "")
    found: dict[str, list[Path]] = {}
    for split, keys in _SPLITS.items():
        value = next((description[key] for key in keys if description.get(key)), None)
        entries = value if isinstance(value, list) else [value] if value is not None else []
        paths: set[Path] = set()
        for entry in entries:
            place = _resolve(root, base, str(entry))
            if place is None:
                # Published data sets often name a test split that is not part of the download.
                if split == "test":
                    continue
                raise TwinsError(f"{file}: {split}: {entry!r} is neither in {base} nor in {root}; correct the path")
            paths.update(_list_images(place))
        found[split] = sorted(paths)
    return found


def _resolve(root: Path, base: Path, entry: str) -> Path | None:
    """Return the existing path of an entry; `None` if there is none.

    Roboflow writes `../train/images` for `train/images`. A `path`, or an absolute entry, that belongs to another
    machine is replaced by the folder of the description.
    """
    shorter = entry.removeprefix("../")
    candidates = [base / shorter, base / entry, root / shorter, root / entry]
    candidates += [root.joinpath(*Path(entry).parts[-count:]) for count in (2, 1)]
    return next((Path(os.path.normpath(path)) for path in candidates if os.path.exists(path)), None)


def _list_images(place: Path) -> Iterator[Path]:
    """Yield the images of a folder and its subfolders, or those in a text file with one path per line."""
    if place.is_dir():
        yield from (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return
    for line in read_lines(place):
        yield Path(os.path.normpath(place.parent / line))


def _label_path(image: Path) -> Path:
    """Return the label file of an image: `labels` replaces the last folder `images`; without one, it is beside."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


_Result = tuple[tuple[int, int], list[dict[str, Any]], list[str]]


def _read_all(split: str, paths: list[Path], num_classes: int, has_keypoints: bool) -> Iterator[_Result]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(lambda path: _read_image(path, num_classes, has_keypoints), paths)
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        description = f"reading labels of {split}"
        yield from tqdm(results, desc=description, total=len(paths), unit=" images", delay=2, disable=None)


def _read_image(path: Path, num_classes: int, has_keypoints: bool) -> _Result:
    """Return the stored size of an image, its annotations, and problems; the size is 0, 0 for a bad image."""
    try:
        with open_image(path) as image:
            size, orientation = image.size, exif_orientation(image)
    except UNREADABLE as error:
        return (0, 0), [], [f"image {one_line(path)} cannot be read ({one_line(error)})"]
    label_path = _label_path(path)
    try:
        text = label_path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return size, [], []
    except (OSError, UnicodeDecodeError) as error:
        return size, [], [f"{one_line(label_path)} cannot be read ({one_line(error)})"]
    annotations, problems = [], []
    lines: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        # Ultralytics removes duplicates as well.
        if not line.strip() or line.strip() in lines:
            continue
        lines.add(line.strip())
        try:
            annotations.append(_parse(line, size, orientation, num_classes, has_keypoints))
        except ValueError as error:
            problems.append(f"{one_line(label_path)}, line {number}: {one_line(error)}")
    return size, annotations, problems


def _parse(line: str, size: tuple[int, int], orientation: int, num_classes: int, has_keypoints: bool) -> dict[str, Any]:
    """Return the annotation of a line `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 …`.

    Raises:
        ValueError: If the line is malformed.
    """
    fields = line.split()
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        raise ValueError(f"{reprlib.repr(line)} contains something that is not a number") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{reprlib.repr(line)} contains a number that is not finite")
    label, values = numbers[0], numbers[1:]
    if has_keypoints:
        values = values[:4]
    is_box = len(values) == 4
    if not is_box and (len(values) < 6 or len(values) % 2):
        count = "1 number" if len(fields) == 1 else f"{len(fields)} numbers"
        raise ValueError(f"has {count}; a box has 5, and a polygon of n points (at least 3) has 1 + 2n")
    if label != int(label) or not 0 <= label < num_classes:
        raise ValueError(f"class {fields[0]} is not one of 0 to {num_classes - 1}")
    outside = [value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE]
    if outside:
        raise ValueError(f"{outside[0]:g} is not between 0 and 1; coordinates must be fractions of the image size")
    width, height = size
    points = list(zip(values[::2], values[1::2], strict=True))
    if is_box:
        (x, y), (w, h) = points
        points = [(x - w / 2, y - h / 2), (x + w / 2, y + h / 2)]
    stored = [_STORED[orientation](x, y) for x, y in points]
    pixels = [(x * width, y * height) for x, y in stored]
    if is_box:
        (x1, x2), (y1, y2) = (sorted(side) for side in zip(*pixels, strict=True))
        fields_of_box = box_annotation(x1, y1, x2, y2, width, height)
        return {"category_id": int(label) + 1, **fields_of_box}
    return {"category_id": int(label) + 1, **polygon_annotation(pixels, width, height)}
