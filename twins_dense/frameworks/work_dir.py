"""The folder of a run: which may be taken, and where a run in it goes on."""

from __future__ import annotations

from pathlib import Path

from ..errors import TwinsError

_POINTER = "last_checkpoint"  # both MMEngine and detectron2 write it


def for_training(work_dir: str | Path, resume: bool) -> Path:
    """The folder, for a run that starts there or, with `resume`, goes on.

    Raises:
        TwinsError: where it is a file, or holds a run and shouldn't, or the other way round.
    """
    folder = _folder(work_dir)
    if resume and not (folder / _POINTER).is_file():
        raise TwinsError(f"work directory {str(work_dir)!r} holds no run to resume: start it without --resume")
    if not resume and (folder / _POINTER).exists():
        raise TwinsError(
            f"work directory {str(work_dir)!r} already holds a run: add --resume to go on with it, "
            "or choose another --work-dir"
        )
    return folder


def for_evaluation(work_dir: str | Path) -> Path:
    """The folder, for results; `TwinsError` where it is a file or holds a training run."""
    folder = _folder(work_dir)
    if (folder / _POINTER).exists():
        raise TwinsError(f"work directory {str(work_dir)!r} holds a training run: choose another --work-dir")
    return folder


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run goes on from; `TwinsError` where it is gone."""
    pointer = folder / _POINTER
    name = pointer.read_text().strip()
    path = folder / Path(name).name  # by its name alone, because the folder may have been moved since
    if not path.is_file():
        raise TwinsError(f"{pointer} names {name!r}, which is not there: write the name of another checkpoint into it")
    return path


def _folder(work_dir: str | Path) -> Path:
    if Path(work_dir).exists() and not Path(work_dir).is_dir():
        raise TwinsError(f"work directory {str(work_dir)!r} is a file: name a folder")
    return Path(work_dir)
