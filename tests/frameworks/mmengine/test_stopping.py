"""A training run that SIGTERM ends saves a checkpoint first, and a resumed run continues exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_fixtures import twins
from detection_fixtures import child_environment, read_scalars, write_config
from run_fixtures import steps

# This hook sends SIGTERM to its own process, after an iteration or in the evaluation after it.
HOOK = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class TerminateHook(Hook):
    def __init__(self, iteration, in_evaluation, times=1):
        self.iteration, self.in_evaluation, self.times = iteration, in_evaluation, times

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and not self.in_evaluation:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration and self.in_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
"""
USE = """
custom_imports["imports"].append("terminate_hook")
custom_hooks.append(dict(type="TerminateHook", iteration={}, in_evaluation={}, times={}))
"""
EPOCHS = 3  # of 4 iterations


def train(config: Path, work_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "twins_dense",
            "train",
            str(config),
            "--no-report",
            "--work-dir",
            str(work_dir),
            *options,
        ],
        cwd=config.parent,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    path = tmp_path_factory.mktemp("stopping")
    (path / "terminate_hook.py").write_text(HOOK)
    config = write_config(path / "plain.py", toy_data, epochs=EPOCHS)
    result = twins("train", config, "--work-dir", path / "whole", "--no-report")
    assert result.code == 0, result.err
    return path


@pytest.mark.parametrize(
    ("iteration", "in_evaluation", "saved"),
    [(6, False, "stopped.pth"), (8, False, "stopped.pth"), (8, True, "epoch_2.pth")],
)
def test_resumes_exactly(folder: Path, toy_data: Path, iteration: int, in_evaluation: bool, saved: str) -> None:
    name = f"stopped_{iteration}_{in_evaluation}"
    more = USE.format(iteration, in_evaluation, 1)
    config = write_config(folder / f"{name}.py", toy_data, epochs=EPOCHS, more=more)
    work_dir = folder / name
    result = train(config, work_dir)
    assert result.returncode == 143, result.stderr
    line = f"stopped: {name} contains a checkpoint of iteration {iteration}; add --resume to continue"
    assert result.stderr.strip() == line
    assert Path((work_dir / "last_checkpoint").read_text()).name == saved

    result_of_resuming = twins("train", folder / "plain.py", "--work-dir", work_dir, "--resume", "--no-report")
    assert result_of_resuming.code == 0, result_of_resuming.err
    assert {path.name for path in work_dir.glob("*.pth")} == {path.name for path in (folder / "whole").glob("*.pth")}
    expected = steps(read_scalars(folder / "whole")[0])
    before, after = (steps(records) for records in read_scalars(work_dir))
    assert list(before) + list(after) == list(range(1, EPOCHS * 4 + 1))
    assert {**before, **after} == expected
    ours, theirs = (torch.load(path / "epoch_3.pth", weights_only=True) for path in (work_dir, folder / "whole"))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer"], theirs["optimizer"], rtol=0, atol=0)
    assert (work_dir / "metrics.json").read_text() == (folder / "whole" / "metrics.json").read_text()


def test_a_second_signal_ends_at_once(folder: Path, toy_data: Path) -> None:
    config = write_config(folder / "twice.py", toy_data, epochs=EPOCHS, more=USE.format(6, False, 2))
    result = train(config, folder / "twice")
    assert (result.returncode, result.stderr.strip()) == (143, "stopped")
    assert not (folder / "twice" / "stopped.pth").exists()


def test_the_whole_group_is_terminated(folder: Path, toy_data: Path) -> None:
    """Schedulers of clusters signal data loader workers as well."""
    more = "train_dataloader.update(num_workers=1)\n"
    config = write_config(folder / "group.py", toy_data, epochs=200, more=more)
    work_dir = folder / "group"
    process = subprocess.Popen(
        [sys.executable, "-m", "twins_dense", "train", str(config), "--work-dir", str(work_dir)],
        cwd=folder,
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (work_dir / "last_checkpoint").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "contains a checkpoint of iteration" in error, error
    assert len(error.strip().splitlines()) == 1
