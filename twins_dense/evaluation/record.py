"""The record of an evaluation: what a model predicted for each image, beside the ground truth.

An evaluation appends one line per image to the folder `record/`, so that an interrupted evaluation can be resumed, and
so that a report can be made later without the model.

    record/about.json        `About`
    record/images-RANK.jsonl one entry per image, written by the process RANK
    record/maps/             for segmentation, the predicted label maps and confidences as PNG files
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..atomic import write_atomically
from ..errors import TwinsError, one_line

NAME = "record"

Task = Literal["detection", "segmentation", "classification"]


@dataclass(frozen=True)
class About:
    """Description of an evaluation.

    Attributes:
        task: "detection", "segmentation" or "classification".
        classes: Names of the classes, in the order of the labels.
        num_images: Number of images of the whole evaluation.
        identity: `identity_of` the checkpoint and the config; an evaluation is only resumed with the same one.
        checkpoint: Path or catalog name of the checkpoint.
        dataset: Path or name of the data set.
        settings: Settings of the task. Detection: `category_ids`, `iou_types`, `max_dets` (number of detections per
            image and class that count). Segmentation: `palette` (one (R, G, B) in 0..255 per class), `first_value`
            (value of the first class in the label maps on disk, 0 or 1), `ignore_index`. Classification: `wnids`,
            `protocol`.
        config: The resolved config as plain data, if there is one.
        engine: "mmengine" or "detectron2"; empty for classification.
        command: The command line.
        started: Local time at which the evaluation started, as in "2026-03-01 14:05:00".
        versions: Versions of the packages that matter, by name.
        device: Name of the CPU or GPU.
    """

    task: Task
    classes: Sequence[str]
    num_images: int
    identity: str
    checkpoint: str
    dataset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    command: str = field(default_factory=lambda: _command_line(sys.argv))
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """A record that was read from disk.

    Entries have an `index`, the position of the image in the data set, and the `file` of the image (absolute). The
    others depend on the task:

    * Detection: `image` (`id`, `height`, `width`), `annotations` (the ground truth as in a COCO annotation file) and
      `detections` (entries of a COCO results file).
    * Segmentation: `height`, `width`, `labels` (path of the true label map, absolute), `prediction` (path of a PNG
      with the predicted class indices 0..K-1, relative to the folder) and `confidence` (path of a PNG with the
      probability of the predicted class in 0..255, for every nth row and column, relative to the folder).
    * Classification: `label`, `top` (the five most probable labels, best first), `probabilities` (theirs) and `loss`;
      for an image that cannot be read `label` and `error` (one line).

    Attributes:
        folder: The folder `record/`.
        about: Description of the evaluation.
        entries: One entry per image, in the order of the data set.
    """

    folder: Path
    about: About
    entries: Sequence[Mapping[str, Any]]

    @property
    def is_complete(self) -> bool:
        """Whether every image of the evaluation has an entry."""
        return len(self.entries) == self.about.num_images

    def is_of(self, checkpoint: str | Path) -> bool:
        """Return whether a file has the bytes of the checkpoint that was evaluated."""
        return self.about.identity.startswith(checkpoint_hash(checkpoint))


class RecordWriter:
    """Writer of the entries of one process. Use it as a context manager.

    Args:
        folder: Folder of the evaluation; the record is its subfolder `record/`.
        about: Description of the evaluation.
        rank: Number of this process; process 0 writes `about.json`.

    Attributes:
        finished: The entries of an interrupted evaluation that is resumed, of all processes; empty at a fresh start.

    Raises:
        TwinsError: If the folder has a record of another model, config or data set.
    """

    def __init__(self, folder: Path, about: About, *, rank: int = 0) -> None:
        self.folder = folder / NAME
        self.finished: Sequence[Mapping[str, Any]] = ()
        if (self.folder / "about.json").is_file():
            found = read_record(folder)
            if (found.about.identity, found.about.num_images) != (about.identity, about.num_images):
                raise TwinsError(
                    f"{str(folder)!r} contains an evaluation of another checkpoint, config or data set "
                    f"({found.about.checkpoint} on {found.about.dataset}): choose another --work-dir, or resume it "
                    "with its own data and options"
                )
            self.finished = found.entries
        elif rank == 0:
            write_atomically(self.folder / "about.json", json.dumps(asdict(about), indent=1).encode() + b"\n")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"images-{rank}.jsonl"
        if path.is_file():  # drop a last line that a kill has cut
            write_atomically(path, b"".join(line for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"))
        self._file = path.open("a", encoding="utf-8")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append the entry of an image, which is complete on disk afterwards."""
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._file.flush()

    def write_map(self, name: str, values: np.ndarray) -> str:
        """Write an array as a greyscale PNG file to `maps/`, and return its path relative to the folder.

        Args:
            name: Name of the file.
            values: uint8 or uint16 (H, W).
        """
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "png")
        write_atomically(self.folder / "maps" / name, buffer.getvalue())
        return f"maps/{name}"

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_record(folder: str | Path) -> Record:
    """Read the record of an evaluation.

    Args:
        folder: Folder of the evaluation, which contains `record/`.

    Raises:
        TwinsError: If there is no record or it is broken.
    """
    path = Path(folder) / NAME
    try:
        with named_if_broken(path):
            content = json.loads((path / "about.json").read_bytes())
            about = About(**{item.name: content[item.name] for item in fields(About)})
            entries = {entry["index"]: entry for entry in _entries(path)}
    except FileNotFoundError:
        raise TwinsError(f"{str(folder)!r} contains no evaluation: run `twins-dense eval` first") from None
    return Record(path, about, [entries[index] for index in sorted(entries)])


@contextlib.contextmanager
def named_if_broken(folder: Path) -> Iterator[None]:
    """Wrap code that reads or uses a record, so that damaged or edited files lead to a `TwinsError`.

    Args:
        folder: The folder `record/`.
    """
    try:
        yield
    except TwinsError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{one_line(error)} is missing" if isinstance(error, KeyError) else one_line(error)
        raise TwinsError(
            f"{str(folder)!r}: the record of the evaluation is broken ({reason}): remove this folder and evaluate again"
        ) from error


def check_unrecorded(folder: Path) -> None:
    """Raise `TwinsError` if the folder of an evaluation that cannot be recorded has a record of another one."""
    if (folder / NAME).exists():
        raise TwinsError(f"{str(folder)!r} contains another evaluation: choose another --work-dir")


def identity_of(checkpoint: str | Path, config: Mapping[str, Any]) -> str:
    """Return the `checkpoint_hash` of a checkpoint, "-", and the hash of a config that consists of plain data."""
    content = json.dumps(config, sort_keys=True, default=str).encode()
    return f"{checkpoint_hash(checkpoint)}-{hashlib.sha256(content).hexdigest()}"


def checkpoint_hash(checkpoint: str | Path) -> str:
    """Return the SHA-256 of the bytes of a checkpoint; the `identity` of its evaluations starts with it."""
    digest = hashlib.sha256()
    with Path(checkpoint).open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of twins-dense, torch and other packages by name, without those that are not installed.

    Args:
        names: Names of packages on PyPI, such as "mmsegmentation".
    """
    found = {}
    for name in ("twins-dense", "torch", *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name(device: str | torch.device) -> str:
    """Return the name of the model of a GPU or, for "cpu", of the processor."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # this file exists only on Linux, and has a model name only on x86
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _command_line(arguments: Sequence[str]) -> str:
    """Return the command line to type; `python -m twins_dense` has the path of `__main__.py` in place of a name."""
    program = Path(arguments[0])
    is_ours = program.name == "twins-dense" or program.parts[-2:] == ("twins_dense", "__main__.py")
    return shlex.join(["twins-dense" if is_ours else arguments[0], *arguments[1:]])


def _entries(path: Path) -> Iterator[Mapping[str, Any]]:
    for file in sorted(path.glob("images-*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            # A kill can cut the last line.
            yield from (json.loads(line) for line in lines if line.endswith("\n"))
