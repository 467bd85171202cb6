"""The work directory of a run: whether it may be used, and which checkpoint a run in it resumes from."""

from __future__ import annotations

from pathlib import Path

from ..errors import TwinsError

_POINTER = "last_checkpoint"  # both MMEngine and detectron2 write it


def for_training(work_dir: str | Path, resume: bool) -> Path:
    """Return the folder of a run that starts, or with `resume` continues.

    Raises:
        TwinsError: if it is a file, if it already holds a run and `resume` is false, or if it holds none to resume.
    """
    folder = _folder(work_dir)
    if resume and not (folder / _POINTER).is_file():
        raise TwinsError(f"work directory {str(work_dir)!r} holds no run to resume: start it without --resume")
    if not resume and (folder / _POINTER).exists():
        raise TwinsError(
            f"work directory {str(work_dir)!r} already holds a run: add --resume to continue it, "
            "or choose another --work-dir"
        )
    return folder


def for_evaluation(work_dir: str | Path) -> Path:
    """Return the folder for the results of an evaluation.

    Raises:
        TwinsError: if it is a file or holds a training run.
    """
    folder = _folder(work_dir)
    if (folder / _POINTER).exists():
        raise TwinsError(f"work directory {str(work_dir)!r} holds a training run: choose another --work-dir")
    return folder


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that a run resumes from; `TwinsError` if it is missing."""
    pointer = folder / _POINTER
    name = pointer.read_text().strip()
    path = folder / Path(name).name  # only the name, because the folder may have been moved
    if not path.is_file():
        raise TwinsError(
            f"{pointer} names {name!r}, which does not exist: write the name of another checkpoint into it"
        )
    return path


def _folder(work_dir: str | Path) -> Path:
    if Path(work_dir).exists() and not Path(work_dir).is_dir():
        raise TwinsError(f"work directory {str(work_dir)!r} is a file: choose a folder")
    return Path(work_dir)
