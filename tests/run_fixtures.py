"""Runs of MMEngine in processes of their own, killed or observed on the way."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import Run, child_environment
from mmengine.config import Config

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.engine import load_config

# Stops after an iteration and waits to be killed.
HALT_HOOK = """
import time
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
"""
# Each rank writes a checksum of every parameter at the end of training, and which images it has trained on.
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
    """Start training with a `HaltHook` and kill the process without warning once it has logged that iteration."""
    with (config.parent / f"{work_dir.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "twins_dense", "train", str(config), "--work-dir", str(work_dir)],
            cwd=config.parent,
            env=child_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 120
        while last_iteration(work_dir) < iteration:
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert last_iteration(work_dir) == iteration


def last_iteration(work_dir: Path) -> int:
    """The newest iteration in the log of scalars; its last line may be half-written."""
    files = list(work_dir.glob("*/vis_data/scalars.json"))
    lines = [line for file in files for line in file.read_text().splitlines() if '"loss"' in line and line[-1] == "}"]
    return len(lines)


def steps(records: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """By iteration: the learning rate, every loss, and the mean over the last iterations, which needs the history."""
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
    """The config of a run under a name of its own: MMEngine tells runs in one process apart by name and second."""
    config = load_config(run.config, overrides)
    config.experiment_name = f"test_engine_{next(_numbers)}"
    return config
