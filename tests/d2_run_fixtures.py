"""Helpers that run detectron2 training in separate processes, and kill or observe it.

Import this module after `d2_fixtures`, which checks that detectron2 is installed.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import torch
from d2_fixtures import HEADS, MARKS, clean_detectron2, engine, read_metrics, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import child_environment
from detectron2.config import instantiate

# A script beside the configs that is run instead of `-m twins_dense`.
PROGRAM = """
import os
import signal
import sys
import time
from pathlib import Path

from detectron2.utils.events import JSONWriter, get_event_storage

from twins_dense.evaluation import metrics_file
from twins_dense.frameworks.detectron2.detection_evaluator import DetectionEvaluator

JSONWriter.__init__.__defaults__ = (1,)  # log the value of each iteration to metrics.jsonl, not the median over 20
log = JSONWriter.write


def log_and_halt(writer):
    '''Once the iteration HALT_AFTER is logged, stop and wait to be killed.'''
    log(writer)
    if get_event_storage().iter == int(os.environ.get("HALT_AFTER", -1)):
        time.sleep(600)


JSONWriter.write = log_and_halt
remaining = int(os.environ.get("KILL_AT_CALL", 0))


def dying(function, dies_in):
    def call(*arguments, **values):
        global remaining
        remaining -= 1
        if remaining == 0:
            dies_in(*arguments, **values)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **values)

    return call


if os.environ.get("KILL_IN") == "write":  # die after half of the file is written
    write_bytes = Path.write_bytes
    Path.write_bytes = dying(write_bytes, lambda path, content: write_bytes(path, content[: len(content) // 2]))
elif os.environ.get("KILL_IN") == "evaluate":  # die at the end of an evaluation
    DetectionEvaluator.evaluate = dying(DetectionEvaluator.evaluate, lambda *arguments: None)
elif os.environ.get("KILL_IN") == "process":  # die after an image has been evaluated
    DetectionEvaluator.process = dying(DetectionEvaluator.process, lambda *arguments: None)
elif os.environ.get("KILL_IN") == "metrics":  # die before an evaluation is written to metrics.json
    metrics_file.write_metrics = dying(metrics_file.write_metrics, lambda *arguments, **values: None)
elif os.environ.get("KILL_IN") == "replace":  # die before the file is renamed
    os.replace = dying(os.replace, lambda *paths: None)

if __name__ == "__main__":
    from twins_dense.cli import main

    main()
"""
MAPPERS = """
from detectron2.data import DatasetMapper


class BadMapper(DatasetMapper):
    '''Mapper that gives one image infinite pixels.'''

    def __init__(self, bad_id=None, **settings):
        super().__init__(**settings)
        self.bad_id = bad_id

    def __call__(self, record):
        entry = super().__call__(record)
        if record["image_id"] == self.bad_id:
            entry["image"] = entry["image"] * float("inf")
        return entry
"""
BAD = "import mappers\ndataloader.train.mapper._target_ = mappers.BadMapper\n"


def command(config: Path, work_dir: Path, *options: object) -> list[str]:
    start = [sys.executable, "program.py", "train", str(config), "--work-dir", str(work_dir), "--no-report"]
    return [*start, *map(str, options)]


def train(config: Path, work_dir: Path, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, work_dir, *options),
        cwd=config.parent,
        env={**child_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def folder_with_programs(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    (path / "program.py").write_text(PROGRAM)
    (path / "mappers.py").write_text(MAPPERS)
    return path


def last_checkpoint(work_dir: Path) -> str | None:
    path = work_dir / "last_checkpoint"
    return path.read_text() if path.exists() else None


def assert_whole(work_dir: Path, *, with_config: bool = True) -> int:
    """Check that all checkpoints can be loaded safely and that `last_checkpoint` names one; return its iteration.

    Configs that name classes of the tests cannot be stored in checkpoints.
    """
    contents = {path.name: torch.load(path, weights_only=True) for path in work_dir.glob("*.pth")}
    for content in contents.values():
        stored = {"twins_dense"} if with_config else set()
        assert set(content) == {"model", "trainer", "dataset_meta", "total_batch_size", "iteration"} | stored
        assert content["trainer"]["iteration"] == content["iteration"]
        assert all(value.isfinite().all() for value in content["model"].values())
    name = last_checkpoint(work_dir)
    assert name in contents
    return contents[name]["iteration"]


def ids_by_iteration(config: Path, count: int) -> list[list[int]]:
    """Return the image ids of each of the first `count` iterations."""
    loader = instantiate(engine.load_config(config).dataloader.train)
    return [[entry["image_id"] for entry in batch] for batch in islice(loader, count)]
