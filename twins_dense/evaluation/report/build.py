"""Write the report of an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from ...atomic import write_atomically
from ...errors import TwinsError
from ..folders import evaluations_of, has_record
from ..record import Record, Task, named_if_broken, read_record
from .page import GENERATOR, Section, render_page
from .run import find_run, run_facts, run_sections

REPORT_NAME = "report.html"


def write_report(
    source: str | Path,
    out: str | Path | None = None,
    *,
    against: str | Path | None = None,
    checkpoint: Path | None = None,
) -> Path:
    """Write the report of an evaluation as one HTML file, and return its path.

    Args:
        source: Folder of an evaluation, or of a training run: its own evaluation (`evaluation/`), else the newest
            finished one in the folder `RUN_eval` beside it.
        out: File to write; `None` stands for `report.html` in the folder `source`.
        against: Another evaluation or run to compare with; it must have the same task, classes and images.
        checkpoint: Checkpoint of the run whose evaluations are preferred. If it has none, the report says so.

    Raises:
        TwinsError: If there is no finished evaluation, the two cannot be compared, or `out` is a folder or a file that
            is not a report.
    """
    record = finished_record(source, checkpoint)
    path = Path(source) / REPORT_NAME if out is None else Path(out)
    check_out(path)
    other = None if against is None else _comparable(record, finished_record(against), str(source), str(against))
    task = _task_module(record)
    run = find_run(record)
    title = f"Report of {Path(source).resolve().name}"
    facts = run_facts(record, run)
    if other is not None:
        title += f", compared with {Path(str(against)).resolve().name}"
        facts.insert(2, ("Compared with", f"{other.about.checkpoint} (evaluated {other.about.started})"))
    if checkpoint is not None and not record.is_of(checkpoint):
        command = shlex.join(["twins-dense", "eval", str(source)])
        facts.insert(2, ("Not evaluated", f"{checkpoint}, the run's best checkpoint now: run `{command}`"))
    with named_if_broken(record.folder):
        sections: Sequence[Section] = [*run_sections(run), *task.sections(record, other)]
        page = render_page(title, facts, task.headlines(record, other), sections)
    write_page(path, page)
    return path


def finished_record(source: str | Path, checkpoint: Path | None = None) -> Record:
    """Return the record of the evaluation that a folder contains (see `write_report`).

    Raises:
        TwinsError: If there is none, or if it is unfinished.
    """
    folder = Path(source)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise TwinsError(f"{str(source)!r} {problem}: name the folder of a training run or of an evaluation")
    if has_record(folder):
        return _finished(folder)
    evaluations = evaluations_of(folder)
    if not evaluations:
        return _finished(_only_evaluation(folder))
    found: Record | None = None
    for evaluation in evaluations:
        record = read_record(evaluation)
        if record.is_complete and (checkpoint is None or record.is_of(checkpoint)):
            return record
        found = found or (record if record.is_complete else None)
    return found or _finished(evaluations[0])


def check_out(path: Path) -> None:
    """Raise `TwinsError` if a report cannot be written to a path, or would replace a file that is not a report."""
    if path.is_dir():
        raise TwinsError(f"--out {str(path)!r} is a folder: name a file, such as {str(path / REPORT_NAME)!r}")
    if path.exists():
        with path.open("rb") as file:
            is_report = GENERATOR.encode() in file.read(4096)
        if not is_report:
            raise TwinsError(f"{str(path)!r} exists and is not a report: choose another --out")
    if not path.parent.is_dir() and any(parent.is_file() for parent in path.parents):
        raise TwinsError(f"--out {str(path)!r}: a folder of this path is a file; choose another path")


def write_page(path: Path, page: str) -> None:
    """Write a page atomically as UTF-8; characters that UTF-8 cannot represent are replaced."""
    try:
        write_atomically(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise TwinsError(f"{str(path)!r} cannot be written ({error.strerror}): choose another --out") from error


def _finished(folder: Path) -> Record:
    record = read_record(folder)
    if not record.is_complete:
        is_classifier = record.about.task == "classification"
        command = shlex.join(["--work-dir", str(folder)])
        remedy = "validate again" if is_classifier else f"finish it by `twins-dense eval … {command}`"
        raise TwinsError(
            f"the evaluation in {str(folder)!r} is unfinished ({len(record.entries)} of {record.about.num_images} "
            f"images): {remedy}"
        )
    return record


def _only_evaluation(folder: Path) -> Path:
    """Return the only subfolder that contains an evaluation, as after `twins-dense validate`."""
    found = sorted(filter(has_record, folder.iterdir()))
    if len(found) > 1:
        raise TwinsError(
            f"{str(folder)!r} contains {len(found)} evaluations: name one of them, such as {str(found[0])!r}"
        )
    if not found:
        command = shlex.join(["twins-dense", "eval", str(folder)])
        raise TwinsError(f"{str(folder)!r} contains no evaluation: run `{command}` first")
    return found[0]


def _task_module(record: Record) -> Any:
    """Return the module with the headlines and sections of a task."""
    task = record.about.task
    if task not in get_args(Task):
        raise TwinsError(f"{str(record.folder)!r}: unknown task {task!r}; known are {', '.join(get_args(Task))}")
    return import_module(f"{__package__}.{task}")


def _comparable(record: Record, other: Record, source: str, against: str) -> Record:
    """Return the other record with its entries in the order of the first one.

    Raises:
        TwinsError: If the task, the classes or the images differ.
    """
    for name in ("task", "classes"):
        mine, theirs = getattr(record.about, name), getattr(other.about, name)
        if mine != theirs:
            raise TwinsError(
                f"{source!r} and {against!r} cannot be compared: their {name} differ{'s' * (name == 'task')} "
                f"({_brief(mine)} and {_brief(theirs)}); choose an evaluation on the same data"
            )
    keys, entries = _keys(record), dict(zip(_keys(other), other.entries, strict=True))
    if set(keys) != set(entries):
        raise TwinsError(
            f"{source!r} and {against!r} cannot be compared: they have {len(keys)} and {len(entries)} images, of which "
            f"{len(set(keys) & set(entries))} are common; choose an evaluation on the same images"
        )
    return replace(other, entries=[entries[key] for key in keys])


def _keys(record: Record) -> list[str]:
    """Return a name for each image: the last two parts of its path, so that moved data can be compared."""
    short = ["/".join(Path(entry["file"]).parts[-2:]) for entry in record.entries]
    return short if len(set(short)) == len(short) else [_position(entry) for entry in record.entries]


def _position(entry: Mapping[str, Any]) -> str:
    return f"{entry['index']} {entry['file']}"


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return value
    names = ", ".join(map(str, value[:3]))
    return f"{len(value)}: {names}{', …' if len(value) > 3 else ''}"
