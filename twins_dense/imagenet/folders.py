"""Read ImageNet's validation set: class folders named by WordNet id (wnid), or a flat folder with a ground truth."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import TwinsError, one_line
from .classes import WNIDS

_SUFFIXES = {".jpeg", ".jpg", ".png"}
_LABELS = {wnid: label for label, wnid in enumerate(WNIDS)}
_WNID = re.compile(r"n\d{8}")

Sample = tuple[Path, int]


def read_samples(root: str | Path, ground_truth: str | Path | None = None, *, subset: bool = False) -> list[Sample]:
    """List the images of a validation set with their labels. A label is the position of the class in `WNIDS`.

    Args:
        root: Folder with one subfolder per class, named by its wnid, or, with a ground truth, folder with the images.
            It may also be the parent of such a folder with the name `val`.
        ground_truth: Ground-truth file for a flat folder, see `read_ground_truth`.
        subset: Whether some of the 1000 classes may be missing.

    Raises:
        TwinsError: If a class is missing, a subfolder is not a class of ImageNet-1k, or there are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise TwinsError(
            f"--data {str(root)!r}: {'not a folder' if root.exists() else 'no such folder'}; check the path"
        )
    if (root / "val").is_dir():
        root = root / "val"
    if ground_truth is not None:
        files = images_in_folder(root)
        wnids = read_ground_truth(ground_truth, [file.stem for file in files])
        samples = [(file, _LABELS[wnids[file.stem]]) for file in files]
    else:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise TwinsError(
                f"{root} has no class folders (n01440764, …): give the folder that contains them, "
                "or add --ground-truth for a flat folder"
            )
        extra = [folder.name for folder in folders if folder.name not in _LABELS]
        if extra:
            raise TwinsError(
                f"{root} has {_some(extra, 'folders')} that are not classes of ImageNet-1k: "
                "remove them, or give a folder that contains only class folders"
            )
        samples = [
            (file, _LABELS[folder.name]) for folder in folders for file in images_in_folder(folder, required=False)
        ]
    missing = sorted(set(WNIDS) - {WNIDS[label] for _, label in samples})
    if missing and not subset:
        raise TwinsError(
            f"{root} has no images of {_some(missing, 'classes')}: complete it, or add --subset to score the others"
        )
    if not samples:
        raise TwinsError(f"{root} has no images ({', '.join(sorted(_SUFFIXES))}): check the path")
    return samples


def sort_into_folders(flat: str | Path, ground_truth: str | Path, out: str | Path) -> int:
    """Sort the images of a flat folder into class folders in `out`, and return their number.

    The sorted images are hard links if the file system allows them, and copies otherwise. Images that are already in
    `out` are kept.

    Args:
        flat: Folder with the images.
        ground_truth: Ground-truth file, see `read_ground_truth`.
        out: Folder for the class folders, named by wnid.

    Raises:
        TwinsError: If images and ground truth do not match one to one, or `out` contains other images.
    """
    flat, out = Path(flat), Path(out)
    if not flat.is_dir():
        raise TwinsError(f"images {str(flat)!r}: no such folder; check the path")
    files = images_in_folder(flat)
    wnids = read_ground_truth(ground_truth, [file.stem for file in files])
    targets = [out / wnids[file.stem] / file.name for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.exists() and target.stat().st_size != file.stat().st_size:
            raise TwinsError(f"{target} differs from {file}: choose an empty folder")
    known = set(targets)
    for folder in out.iterdir() if out.is_dir() else ():
        for image in images_in_folder(folder, required=False) if folder.is_dir() else ():
            if image not in known:
                raise TwinsError(
                    f"{image} does not belong there according to {str(ground_truth)!r}: choose an empty folder"
                )
    for file, target in zip(files, tqdm(targets, desc="sorting", unit=" images", disable=None), strict=True):
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # a different file system, or one without hard links
            write_atomically(target, file.read_bytes())
    return len(files)


def images_in_folder(folder: Path, *, required: bool = True) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    Raises:
        TwinsError: If `required` is true and there are none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if required and not files:
        raise TwinsError(f"{folder} has no images ({', '.join(sorted(_SUFFIXES))}): check the path")
    return files


def read_ground_truth(file: str | Path, names: list[str]) -> Mapping[str, str]:
    """Read the wnid of each image from a ground-truth file.

    Each line contains an image name and its wnid or its label 0..999, separated by spaces or a comma; the rest of the
    line is ignored. Kaggle's LOC_val_solution.csv and Caffe's val.txt have this form. Alternatively, each line contains
    only a wnid, in the order of the image names.

    Args:
        file: Path of the ground-truth file.
        names: Image names without suffix, sorted.

    Returns:
        The wnid of each name.

    Raises:
        TwinsError: If a line has another form, or lines and images do not match one to one.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TwinsError(f"ground truth {str(file)!r} cannot be read ({one_line(error)})") from None
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines if line.strip()]
    if rows and rows[0][0] == "ImageId":
        rows = rows[1:]
    if rows and all(len(row) == 1 and _WNID.fullmatch(row[0]) for row in rows):
        if len(rows) != len(names):
            raise TwinsError(
                f"ground truth {str(file)!r} has {len(rows)} wnids for {len(names)} images: give one per image"
            )
        rows = [[name, *row] for name, row in zip(names, rows, strict=True)]
    wnids: dict[str, str] = {}
    for row in rows:
        name = Path(row[0]).stem
        if len(row) < 2 or (wnid := _wnid_of(row[1])) is None:
            raise TwinsError(
                f"ground truth {str(file)!r}: line {' '.join(row[:2])!r} is not an image name with a wnid of "
                "ImageNet-1k or a label 0..999; the devkit's own class numbers (ILSVRC2012_ID) are not supported"
            )
        if name in wnids:
            raise TwinsError(f"ground truth {str(file)!r} has {name} twice: remove one line")
        wnids[name] = wnid
    unknown, surplus = sorted(set(names) - wnids.keys()), sorted(wnids.keys() - set(names))
    if unknown or surplus:
        problem = f"lacks {_some(unknown, 'images')}" if unknown else f"names {_some(surplus, 'missing images')}"
        raise TwinsError(f"ground truth {str(file)!r} {problem}: lines and images must match one to one")
    return wnids


def _wnid_of(text: str) -> str | None:
    if _WNID.fullmatch(text):
        return text if text in _LABELS else None
    return WNIDS[int(text)] if re.fullmatch(r"\d{1,3}", text) else None


def _some(names: list[str], kind: str) -> str:
    """Return the number of names and the first three of them."""
    return f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
