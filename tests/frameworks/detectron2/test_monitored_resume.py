"""Killed runs that average their weights, keep the best checkpoint and count evaluations without improvement."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import snapshot, twins
from d2_fixtures import MARKS, clean_detectron2, read_metrics, write_lazy  # noqa: F401  (a fixture)
from d2_run_fixtures import assert_whole, command, folder_with_programs, last_checkpoint, train
from detection_fixtures import child_environment

pytestmark = MARKS
# An evaluation every 2 iterations, and a checkpoint every 4.
MORE = """
train.update(max_iter=8, eval_period=2, monitoring=dict(ema=True, patience=20, val_loss=True, samples=1))
"""


@dataclass(frozen=True)
class Run:
    config: Path
    work_dir: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Run:
    """A run that was not interrupted. Tests must not change it."""
    root = folder_with_programs(tmp_path_factory.mktemp("monitored"))
    config = write_lazy(root / "tiny.py", toy_data, "retinanet", more=MORE)
    result = train(config, root / "whole")
    assert result.returncode == 0, result.stderr
    return Run(config, root / "whole")


def plain(content: Any) -> Any:
    """Return the content of a checkpoint without its times and the work directory, and with the bytes of tensors."""
    if isinstance(content, dict):
        left_out = ("time", "seconds", "output_dir")
        return {key: plain(value) for key, value in content.items() if not str(key).endswith(left_out)}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, torch.Tensor):
        return content.dtype, tuple(content.shape), content.numpy().tobytes()
    return repr(content)  # so that NaN equals NaN


def read_lines(work_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(found: Path, expected: Path) -> None:
    """Check that two runs have left the same bits, except for times."""
    names = {path.name for path in expected.glob("*.pth")}
    assert {path.name for path in found.glob("*.pth")} == names >= {"model_best.pth", "model_final.pth"}
    for name in names:
        ours, theirs = (plain(torch.load(folder / name, weights_only=True)) for folder in (found, expected))
        assert ours == theirs, name
    ours, theirs = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (found, expected)
    )
    assert plain(ours) == plain(theirs)
    assert (found / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    samples = {path.relative_to(expected) for path in (expected / "samples").rglob("*.jpg")}
    assert {path.relative_to(found) for path in (found / "samples").rglob("*.jpg")} == samples
    assert last_checkpoint(found) == last_checkpoint(expected)


def test_what_the_whole_run_leaves(whole: Run) -> None:
    assert assert_whole(whole.work_dir) == 7
    lines = read_lines(whole.work_dir)
    assert [line["iteration"] for line in lines] == list(range(8))
    scores = {line["iteration"] + 1: line["bbox/AP"] for line in lines if "bbox/AP" in line}
    assert list(scores) == [2, 4, 6, 8] and len(set(scores.values())) > 1
    best = torch.load(whole.work_dir / "model_best.pth", weights_only=True)
    state = best["trainer"]["hooks"]["Monitor"]
    assert state["metric"] == "coco/bbox_AP" and state["best_iteration"] == best["iteration"] + 1
    assert (
        state["best_value"] * 100 == pytest.approx(max(scores.values())) == pytest.approx(scores[best["iteration"] + 1])
    )
    final = torch.load(whole.work_dir / "model_final.pth", weights_only=True)
    trained = final["trainer"]["hooks"]["WeightAverage"]["trained"]
    assert trained.keys() == final["model"].keys()
    assert any(not torch.equal(value, final["model"][name]) for name, value in trained.items())


@pytest.mark.parametrize(
    ("where", "call", "checkpoint", "evaluated"),
    [
        # The run is killed in its 2nd evaluation, after iteration 4, or in the 3rd or the 4th one.
        pytest.param("evaluate", 2, "model_0000003.pth", [4, 6, 8], id="evaluating a checkpoint"),
        pytest.param("metrics", 2, "model_0000003.pth", [4, 6, 8], id="after evaluating a checkpoint"),
        pytest.param("metrics", 3, "model_0000003.pth", [6, 8], id="after an evaluation without a checkpoint"),
        pytest.param("evaluate", 4, "model_final.pth", [8], id="in the last evaluation"),
    ],
)
def test_goes_on_as_without_the_kill(
    whole: Run, tmp_path: Path, where: str, call: int, checkpoint: str, evaluated: list[int]
) -> None:
    work_dir = tmp_path / whole.work_dir.name
    result = train(whole.config, work_dir, KILL_IN=where, KILL_AT_CALL=str(call))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert last_checkpoint(work_dir) == checkpoint
    result = train(whole.config, work_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert [int(number) for number in re.findall(r"evaluation after iteration (\d+)", result.stdout)] == evaluated
    assert_same_run(work_dir, whole.work_dir)


def test_a_kill_in_the_evaluation_that_stops_the_run(tmp_path: Path, toy_data: Path) -> None:
    """With a learning rate of 0, the run stops after its third evaluation, which is after iteration 6."""
    more = (
        "train.update(max_iter=8, eval_period=2, monitoring=dict(patience=2, samples=0))\n"
        "train.checkpointer.period = 2\noptimizer.lr = 0.0\n"
    )
    config = write_lazy(folder_with_programs(tmp_path) / "tiny.py", toy_data, "retinanet", more=more)
    assert train(config, tmp_path / "whole").returncode == 0
    assert last_checkpoint(tmp_path / "whole") == "model_final.pth"
    for where in ("evaluate", "metrics"):
        result = train(config, tmp_path / where, KILL_IN=where, KILL_AT_CALL="3")
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert last_checkpoint(tmp_path / where) == "model_0000005.pth"
        result = train(config, tmp_path / where, "--resume")
        assert result.returncode == 0, result.stderr
        assert "stopped: 2 evaluations" in result.stdout
        assert_same_run(tmp_path / where, tmp_path / "whole")


def test_a_recorded_evaluation_is_not_repeated(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.work_dir, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    result = twins("train", whole.config, "--work-dir", tmp_path / "run", "--resume", "--no-report")
    assert result.code == 0, result.err
    assert "evaluation after" not in result.out
    after = snapshot(tmp_path / "run")
    assert before.keys() == after.keys()
    # The path of the copied folder is in config.yaml.
    assert {name for name in before if before[name] != after[name]} == {"log.txt", "config.yaml"}


def test_averaging_has_to_be_kept(whole: Run, tmp_path: Path, toy_data: Path) -> None:
    shutil.copytree(whole.work_dir, tmp_path / "run")
    options = ("--resume", "train.max_iter=10")
    result = twins("train", whole.config, "--work-dir", tmp_path / "run", *options, "train.monitoring.ema=False")
    assert result.code == 2 and result.err.startswith("error: ") and "add --ema" in result.err


def test_two_processes(tmp_path: Path, toy_data: Path) -> None:
    """Both processes are killed after an evaluation without a checkpoint."""
    more = MORE + "dataloader.train.total_batch_size = 4\ntrain.max_iter = 6\n"
    config = write_lazy(folder_with_programs(tmp_path) / "tiny.py", toy_data, "retinanet", more=more)
    result = train(config, tmp_path / "whole", "--num-gpus", 2)
    assert result.returncode == 0, result.stderr

    process = subprocess.Popen(
        command(config, tmp_path / "killed", "--num-gpus", 2),
        cwd=tmp_path,
        env={**child_environment(), "HALT_AFTER": "4"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while 4 not in read_metrics(tmp_path / "killed"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # all three processes
    process.wait()
    assert last_checkpoint(tmp_path / "killed") == "model_0000003.pth"
    result = train(config, tmp_path / "killed", "--num-gpus", 2, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
