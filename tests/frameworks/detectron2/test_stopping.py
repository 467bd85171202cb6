"""A detectron2 run that SIGTERM ends saves a checkpoint first, and a resumed run continues exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_fixtures import twins
from d2_fixtures import MARKS, clean_detectron2, read_metrics, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import child_environment

pytestmark = MARKS

# The process sends SIGTERM to itself at the start of iteration 6.
PROGRAM = """
import os, signal, sys
from detectron2.engine import SimpleTrainer
from twins_dense.__main__ import main

run_step = SimpleTrainer.run_step


def terminated(self):
    if self.iter == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    run_step(self)


SimpleTrainer.run_step = terminated
main()
"""


@pytest.mark.parametrize("head", ["retinanet"])
def test_resumes_exactly(head: str, tmp_path: Path, toy_data: Path) -> None:
    config = write_lazy(tmp_path / "tiny.py", toy_data, head)
    (tmp_path / "terminated.py").write_text(PROGRAM)
    whole = twins("train", config, "--work-dir", tmp_path / "whole", "--no-report")
    assert whole.code == 0, whole.err
    arguments = ["terminated.py", "train", str(config), "--work-dir", "run", "--no-report"]
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 143, result.stderr
    line = "stopped: run contains a checkpoint of iteration 6; add --resume to continue"
    assert result.stderr.splitlines()[-1] == line and "Traceback" not in result.stderr
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "stopped.pth"

    resumed = twins("train", config, "--work-dir", tmp_path / "run", "--resume", "--no-report")
    assert resumed.code == 0, resumed.err
    folders = tmp_path / "run", tmp_path / "whole"
    names, expected = ({path.name for path in folder.glob("*.pth")} for folder in folders)
    assert names == expected
    ours, theirs = (torch.load(folder / "model_final.pth", weights_only=True) for folder in folders)
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    torch.testing.assert_close(ours["trainer"]["optimizer"], theirs["trainer"]["optimizer"], rtol=0, atol=0)
    found, expected_records = (read_metrics(folder) for folder in folders)
    assert list(found) == list(expected_records)
    for iteration, (record, *_) in expected_records.items():
        assert found[iteration][0]["total_loss"] == record["total_loss"]
