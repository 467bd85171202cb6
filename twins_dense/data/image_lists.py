"""Lists of images, from files, folders, globs, text files or COCO files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TwinsError, one_line
from .coco import outside_problem, read_image_names
from .image_files import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageList:
    """Images to process, in a fixed order.

    Attributes:
        ids: Unique id of each image: its path as it was given or found, or its id in the COCO file.
        paths: Path of each image.
        upright: Whether to apply the EXIF orientation. It is false for COCO files, whose annotations refer to
            pixels as they are stored.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    upright: bool


def list_images(
    arguments: Sequence[str], image_dir: str | None = None, *, out: Path | None = None, allow_outside: bool = False
) -> ImageList:
    """List the images given as files, folders, globs and text files, or those of one COCO file.

    Args:
        arguments: Image files, folders, globs, and text files (.txt) with one path per line; or one COCO file (.json).
        image_dir: Folder that the paths in text files and the COCO file are relative to. `None` means the folder of the
            text file, and the folder ROOT/NAME for a COCO file ROOT/annotations/instances_NAME.json.
        out: Folder of results, which is skipped when folders are searched.
        allow_outside: Whether the COCO file may name images outside their folder, by `..` or as an absolute path.

    Raises:
        TwinsError: If an argument matches no image, or an image of the COCO file is outside its folder.
    """
    coco_files = [Path(argument) for argument in arguments if argument.lower().endswith(".json")]
    if coco_files:
        if len(arguments) > 1:
            raise TwinsError(f"images {str(coco_files[0])!r}: give either one COCO file or other images")
        folder = Path(image_dir) if image_dir is not None else _coco_image_dir(coco_files[0])
        paths = {str(image_id): folder / name for image_id, name in read_image_names(coco_files[0]).items()}
        problems = () if allow_outside else (outside_problem(path, folder) for path in paths.values())
        problem = next(filter(None, problems), None)
        if problem is not None:
            raise TwinsError(f"{coco_files[0]}: {problem}")
        return ImageList(list(paths), list(map(str, paths.values())), upright=False)
    found: dict[str, None] = {}
    for argument in arguments:
        if argument.lower().endswith(".txt"):
            found.update(dict.fromkeys(_read_list(Path(argument), image_dir)))
        else:
            found.update(dict.fromkeys(map(str, find_images([argument], out=out))))
    return ImageList(list(found), list(found), upright=True)


def find_images(arguments: Sequence[str], *, out: Path | None = None) -> list[Path]:
    """List the image files given as files, folders and globs, each once, sorted within each argument.

    Folders are searched recursively, except for `out`, the folder of results.

    Raises:
        TwinsError: If an argument matches no image.
    """
    files: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
            if out is not None and out.resolve().is_relative_to(path.resolve()):
                results = path / out.resolve().relative_to(path.resolve())
                found = [file for file in found if not file.is_relative_to(results)]
        elif path.is_file():
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file()]
        if not found:
            raise TwinsError(f"images {argument!r}: no such file, no image in that folder, or no match; check the path")
        files.update(dict.fromkeys(sorted(found)))
    if not files:
        raise TwinsError("no images given: name files, folders or globs")
    return list(files)


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file without the white space around them, except for empty lines.

    Raises:
        TwinsError: If the file cannot be read as text.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TwinsError(f"list {str(file)!r} cannot be read ({one_line(error)}); give a text file") from None


def _read_list(file: Path, image_dir: str | None) -> list[str]:
    names = read_lines(file)
    if not names:
        raise TwinsError(f"list {str(file)!r} is empty: write one path per line")
    folder = file.parent if image_dir is None else Path(image_dir)
    return [str(folder / name) for name in names]


def _coco_image_dir(ann_file: Path) -> Path:
    folder = ann_file.parent.parent / ann_file.stem.partition("_")[2]
    if ann_file.parent.name == "annotations" and folder.is_dir():
        return folder
    raise TwinsError(f"{ann_file}: cannot find its images; name their folder with --image-dir")
