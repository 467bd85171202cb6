"""ImageNet's validation set on disk: folders named by WordNet id (wnid), or a flat folder and a ground-truth file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import TwinsError
from .classes import WNIDS

_SUFFIXES = {".jpeg", ".jpg", ".png"}
_LABELS = {wnid: label for label, wnid in enumerate(WNIDS)}
_WNID = re.compile(r"n\d{8}")

Sample = tuple[Path, int]


def read_samples(root: str | Path, ground_truth: str | Path | None = None, *, subset: bool = False) -> list[Sample]:
    """The images of a validation set with their labels: positions in `WNIDS`, whatever classes are there.

    Args:
        root: holds one folder a class, named by its wnid, or has a folder `val` that does. With a ground truth, or
            inside `val`: the images themselves.
        ground_truth: a file that `read_ground_truth` reads, for a flat folder.
        subset: score the classes that are there, where some of the 1000 are missing.

    Raises:
        TwinsError: for folders that are missing or that are no class of ImageNet-1k, or where there are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise TwinsError(f"--data {str(root)!r}: {'is a file' if root.exists() else 'no such folder'}; check the path")
    if (root / "val").is_dir():
        root = root / "val"
    if ground_truth is not None:
        files = find_images(root)
        wnids = read_ground_truth(ground_truth, [file.stem for file in files])
        samples = [(file, _LABELS[wnids[file.stem]]) for file in files]
    else:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise TwinsError(
                f"{root} has no class folders (n01440764, …): give the folder that has them, "
                "or the ground truth of a flat folder with --ground-truth"
            )
        extra = [folder.name for folder in folders if folder.name not in _LABELS]
        if extra:
            raise TwinsError(
                f"{root} has {_some(extra, 'folders')} that are no class of ImageNet-1k: "
                "remove them, or give the folder that has only its wnids"
            )
        samples = [(file, _LABELS[folder.name]) for folder in folders for file in find_images(folder, required=False)]
    missing = sorted(set(WNIDS) - {WNIDS[label] for _, label in samples})
    if missing and not subset:
        raise TwinsError(
            f"{root} has no images of {_some(missing, 'classes')}: complete it, or add --subset to score the others"
        )
    if not samples:
        raise TwinsError(f"{root} has no images ({', '.join(sorted(_SUFFIXES))}): check the path")
    return samples


def sort_into_folders(flat: str | Path, ground_truth: str | Path, out: str | Path) -> int:
    """Give the images of a flat folder a second name in `out`, below their wnids; returns how many there are.

    The names are hard links where the disk allows them, else copies. What is there already is left as it is.

    Raises:
        TwinsError: where images and ground truth don't match one to one, or `out` has other images.
    """
    flat, out = Path(flat), Path(out)
    if not flat.is_dir():
        raise TwinsError(f"images {str(flat)!r}: no such folder; check the path")
    files = find_images(flat)
    wnids = read_ground_truth(ground_truth, [file.stem for file in files])
    targets = [out / wnids[file.stem] / file.name for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.exists() and target.stat().st_size != file.stat().st_size:
            raise TwinsError(f"{target} is another file than {file}: choose an empty folder")
    known = set(targets)
    for folder in out.iterdir() if out.is_dir() else ():
        for there in find_images(folder, required=False) if folder.is_dir() else ():
            if there not in known:
                raise TwinsError(f"{there} doesn't belong there by {str(ground_truth)!r}: choose an empty folder")
    for file, target in zip(files, tqdm(targets, desc="sorting", unit=" images", disable=None), strict=True):
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # another disk, or one without links
            write_atomically(target, file.read_bytes())
    return len(files)


def find_images(folder: Path, *, required: bool = True) -> list[Path]:
    """The image files of a folder in the order of their names; `TwinsError` where there are none but have to be."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if required and not files:
        raise TwinsError(f"{folder} has no images ({', '.join(sorted(_SUFFIXES))}): check the path")
    return files


def read_ground_truth(file: str | Path, names: list[str]) -> Mapping[str, str]:
    """Which wnid each image has.

    The file has a line an image: its name and its wnid or label 0..999, parted by blanks or a comma, with or without
    more behind it (Kaggle's LOC_val_solution.csv, Caffe's val.txt); or a wnid alone, in the order of the images' names.

    Args:
        file: the ground truth.
        names: of the images, sorted, without suffix.

    Returns:
        From each of `names` to its wnid.

    Raises:
        TwinsError: for a line that is none of these, or where lines and images don't match one to one.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TwinsError(f"ground truth {str(file)!r} can't be read ({' '.join(str(error).split())})") from None
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines if line.strip()]
    if rows and rows[0][0] == "ImageId":
        rows = rows[1:]
    if rows and all(len(row) == 1 and _WNID.fullmatch(row[0]) for row in rows):
        if len(rows) != len(names):
            raise TwinsError(
                f"ground truth {str(file)!r} has {len(rows)} wnids for {len(names)} images: complete either"
            )
        rows = [[name, *row] for name, row in zip(names, rows, strict=True)]
    wnids: dict[str, str] = {}
    for row in rows:
        name = Path(row[0]).stem
        if len(row) < 2 or (wnid := _wnid_of(row[1])) is None:
            raise TwinsError(
                f"ground truth {str(file)!r}: line {' '.join(row[:2])!r} is no image's name with a wnid of ImageNet-1k "
                "or a label 0..999; lines of the devkit's own numbers (ILSVRC2012_ID) don't serve"
            )
        if name in wnids:
            raise TwinsError(f"ground truth {str(file)!r} has {name} twice: remove one line")
        wnids[name] = wnid
    unknown, surplus = sorted(set(names) - wnids.keys()), sorted(wnids.keys() - set(names))
    if unknown or surplus:
        what = f"says nothing of {_some(unknown, 'images')}" if unknown else f"names {_some(surplus, 'missing images')}"
        raise TwinsError(f"ground truth {str(file)!r} {what}: lines and images must match one to one")
    return wnids


def _wnid_of(text: str) -> str | None:
    if _WNID.fullmatch(text):
        return text if text in _LABELS else None
    return WNIDS[int(text)] if re.fullmatch(r"\d{1,3}", text) else None


def _some(names: list[str], what: str) -> str:
    return f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
