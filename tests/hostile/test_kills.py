"""Training runs that are ended by signals at random moments, imports and validation included."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detection_fixtures import child_environment, write_config

pytestmark = pytest.mark.hostile
NUM_KILLS = 40
NUM_SIGNALS = 60
EPOCHS = 3
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def start(config: Path, work_dir: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["-m", "twins_dense", "train", str(config), "--work-dir", str(work_dir), "--no-report", *options]
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=config.parent,
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def resume_options(work_dir: Path) -> list[str]:
    return ["--resume"] if (work_dir / "last_checkpoint").exists() else []


def wait_for_handlers(process: subprocess.Popen[str]) -> None:
    """Wait until the command handles SIGTERM; before that, Python itself starts."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> tuple[Path, float]:
    """Return the folder of a config and an undisturbed run of it, and how many seconds the run has taken."""
    folder = tmp_path_factory.mktemp("kills")
    config = write_config(folder / "tiny.py", toy_data, epochs=EPOCHS)
    begin = time.monotonic()
    process = start(config, folder / "whole")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return folder, time.monotonic() - begin


def assert_equal(ours: Path, theirs: Path) -> None:
    assert {path.name for path in ours.glob("*.pth")} == {path.name for path in theirs.glob("*.pth")}
    for path in theirs.glob("*.pth"):
        found, expected = (torch.load(folder / path.name, weights_only=True) for folder in (ours, theirs))
        for part in {"state_dict", "optimizer"} & expected.keys():  # the best one has no optimiser
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert (ours / "metrics.json").read_bytes() == (theirs / "metrics.json").read_bytes()


def end_at_random(whole: tuple[Path, float], name: str, count: int, numbers: list[signal.Signals]) -> None:
    """End runs `count` times, resume them, and compare each that gets to its end with the undisturbed run."""
    folder, seconds = whole
    moments, finished, work_dir = random.Random(name), 0, folder / f"{name}_0"
    for index in range(count):
        process = start(folder / "tiny.py", work_dir, *resume_options(work_dir))
        wait_for_handlers(process)
        number, moment = moments.choice(numbers), moments.uniform(0, seconds)
        try:
            _, error = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        expected = EXIT_CODES.get(number, -number)
        assert process.returncode in (0, expected), (index, moment, error)
        if number in EXIT_CODES and process.returncode:
            assert error.strip().startswith("stopped") and "\n" not in error.strip(), (index, moment, error)
        if process.returncode == 0:
            assert_equal(work_dir, folder / "whole")
            finished += 1
            work_dir = folder / f"{name}_{finished}"
    process = start(folder / "tiny.py", work_dir, *resume_options(work_dir))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_equal(work_dir, folder / "whole")


def test_kills(whole: tuple[Path, float]) -> None:
    end_at_random(whole, "killed", NUM_KILLS, [signal.SIGKILL])


def test_signals(whole: tuple[Path, float]) -> None:
    end_at_random(whole, "signalled", NUM_SIGNALS, list(EXIT_CODES))
