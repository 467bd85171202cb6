"""Helpers that run MMEngine training in separate processes, and kill or observe it."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import Run, child_environment
from mmengine.config import Config

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.engine import load_config

# These hooks stop after an iteration, or in the evaluation after an iteration, and wait to be killed.
HALT_HOOK = """
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class HaltHook(Hook):
    priority = "LOWEST"  # after the iteration is logged

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.iteration:
            time.sleep(600)


@HOOKS.register_module()
class HaltInEvaluationHook(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iteration:
            Path(runner.work_dir, "halted").touch()
            time.sleep(600)
"""
# With this hook, each rank writes a checksum of every parameter and the images that it was trained on.
DUMP_HOOK = """
import json
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class DumpHook(Hook):
    def __init__(self):
        self.images = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        samples = [sample.metainfo for sample in data_batch["data_samples"]]
        self.images.append([meta.get("image_id", meta.get("img_path")) for meta in samples])

    def after_train(self, runner):
        model = getattr(runner.model, "module", runner.model)
        sums = {name: value.double().sum().item() for name, value in model.state_dict().items()}
        content = {"sums": sums, "images": self.images, "world": get_world_size(), "draw": torch.rand(1).item()}
        with open(f"rank_{get_rank()}.json", "w") as file:
            json.dump(content, file)
"""


def train_and_kill(config: Path, work_dir: Path, iteration: int) -> None:
    """Start training with a `HaltHook`, and kill the process once it has logged that iteration."""
    _kill_when(lambda: last_iteration(work_dir) >= iteration, config, work_dir)
    assert last_iteration(work_dir) == iteration


def train_and_kill_in_evaluation(config: Path, work_dir: Path) -> None:
    """Start training with a `HaltInEvaluationHook`, and kill the process once it has stopped."""
    _kill_when((work_dir / "halted").exists, config, work_dir)


def _kill_when(is_time: Callable[[], bool], config: Path, work_dir: Path) -> None:
    with (config.parent / f"{work_dir.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "twins_dense", "train", str(config), "--work-dir", str(work_dir)],
            cwd=config.parent,
            env=child_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 120
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def last_iteration(work_dir: Path) -> int:
    """Return the last iteration in the log of scalars; a half-written last line is ignored."""
    files = list(work_dir.glob("*/vis_data/scalars.json"))
    lines = [line for file in files for line in file.read_text().splitlines() if '"loss"' in line and line[-1] == "}"]
    return len(lines)


def steps(records: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return the learning rate, all losses and the mean over recent iterations, by iteration."""
    kept = {}
    for record in records:
        if "loss" in record:
            kept[record["step"]] = {name: value for name, value in record.items() if name == "lr" or "loss" in name}
    return kept


def one_line_of(caught: pytest.ExceptionInfo[TwinsError], *parts: str) -> str:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


_numbers = itertools.count()


def config_of(run: Run, overrides: Sequence[str] = ()) -> Config:
    """Load the config of a run with a unique experiment name.

    MMEngine distinguishes runs in one process only by name and second.
    """
    config = load_config(run.config, overrides)
    config.experiment_name = f"test_engine_{next(_numbers)}"
    return config
