"""Two processes train one detectron2 model with equal parameters and averaged gradients; errors are one line."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, twins
from d2_fixtures import HEADS, MARKS, clean_detectron2, engine, read_metrics, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import NUM_VAL, ROOT, child_environment, run_python
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from twins_dense.seeds import derived_seed

pytestmark = MARKS
SCRIPT = str(ROOT / "tools" / "train_net.py")
# Each process writes its parameters and gradients in the first step, and its parameters after the fifth step.
MODULE = """
import torch
from detectron2.data import DatasetMapper
from detectron2.utils import comm


class DumpingAdamW(torch.optim.AdamW):
    num_steps = 0

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.num_steps == 0:
            self.content = {
                "before": [p.detach().clone() for p in parameters],
                "gradients": [p.grad.clone() for p in parameters],
                "world_size": comm.get_world_size(),
            }
        super().step()
        self.num_steps += 1
        if self.num_steps == 5:
            self.content["after"] = [p.detach() for p in parameters]
            torch.save(self.content, f"rank_{comm.get_rank()}.pt")


class BadMapper(DatasetMapper):
    '''Gives images infinite pixels, from the second batch of the second process on.'''

    count = 0

    def __call__(self, record):
        entry = super().__call__(record)
        self.count += 1
        if comm.get_rank() == 1 and self.count > 2:
            entry["image"] = entry["image"] * float("inf")
        return entry
"""
MORE = """
import two_processes
optimizer._target_ = two_processes.DumpingAdamW
dataloader.train.total_batch_size = 4
train.update(max_iter=5, eval_period=5, monitoring=dict(tensorboard=True))
"""


@dataclass(frozen=True)
class TwoProcesses:
    config: Path
    work_dir: Path
    ranks: list[dict[str, Any]]
    log: str


@pytest.fixture(scope="module", params=HEADS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> TwoProcesses:
    """Five iterations of 2 x 2 images; RetinaNet is run by tools/train_net.py. Tests must not change it."""
    root = tmp_path_factory.mktemp(f"two_{request.param}")
    (root / "two_processes.py").write_text(MODULE)
    config, work_dir = write_lazy(root / "tiny.py", toy_data, request.param, more=MORE), root / "work"
    options = ["-m", "twins_dense", "train", str(config), "--work-dir", str(work_dir)]
    if request.param == "retinanet":
        options = [SCRIPT, "--config-file", str(config)]
    overrides = [f"train.output_dir={work_dir}"] if request.param == "retinanet" else []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
        result = run_python(*options, "--num-gpus", "2", *overrides, cwd=root)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(root / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]
    return TwoProcesses(config, work_dir, ranks, (work_dir / "log.txt").read_text())


def last_scores(work_dir: Path) -> dict[str, float]:
    """Return the scores that detectron2 logged last, with the names and the unit of metrics.json."""
    logged = json.loads((work_dir / "metrics.jsonl").read_text().splitlines()[-1])
    scores = {name.partition("/")[::2]: value for name, value in logged.items() if "/AP" in name}
    return {f"coco/{task}_{name}": value / 100 for (task, name), value in scores.items()}


@pytest.fixture
def modules(run: TwoProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(run.config.parent)


def test_both_have_the_same_parameters(run: TwoProcesses) -> None:
    first, second = run.ranks
    assert first["world_size"] == second["world_size"] == 2
    for key in ("before", "gradients", "after"):
        assert len(first[key]) == len(second[key]) > 50
        assert all(map(torch.equal, first[key], second[key])), key
    changed = [not torch.equal(*pair) for pair in zip(first["before"], first["after"], strict=True)]
    assert sum(changed) == len(changed)


@pytest.mark.usefixtures("modules")
def test_the_gradient_is_the_mean_of_both_halves(run: TwoProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat the steps of both processes in this process, with the same images and seeds."""
    halves, images = [], []
    for rank in range(2):
        config = engine.load_config(run.config)
        model = instantiate(config.model).train()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), run.ranks[0]["before"], strict=True):
                parameter.copy_(value)
        with monkeypatch.context() as patch:
            patch.setattr(comm, "get_rank", lambda rank=rank: rank)
            patch.setattr(comm, "get_world_size", lambda: 2)
            patch.setattr("detectron2.data.build.get_world_size", lambda: 2)
            batches = iter(instantiate(config.dataloader.train))
            torch.manual_seed(derived_seed(config.train.seed, 0, rank))
            batch = next(batches)
        with EventStorage():
            sum(model(batch).values()).backward()
        halves.append([parameter.grad for parameter in model.parameters()])
        images.append([entry["image_id"] for entry in batch])
    assert len({*images[0], *images[1]}) == 4
    for found, first, second in zip(run.ranks[0]["gradients"], *halves, strict=True):
        # Thousands of numbers are summed in another order, so compare relative to the largest value of each tensor.
        largest = max(first.abs().max(), second.abs().max())
        assert (found - (first + second) / 2).abs().max() <= 1e-5 * largest
    # The gradients of the two halves differ, so their mean equals neither.
    distance = sum((first - second).norm() for first, second in zip(*halves, strict=True))
    assert distance > 0.1 * sum(first.norm() for first in halves[0])


def test_one_of_everything(run: TwoProcesses) -> None:
    names = {path.name.split(".tfevents")[0] for path in run.work_dir.iterdir()}
    assert names >= {
        "config.yaml",
        "last_checkpoint",
        "log.txt",
        "log.txt.rank1",
        "metrics.json",
        "metrics.jsonl",
        "model_final.pth",
    }
    assert sum("tfevents" in path.name for path in run.work_dir.iterdir()) == 1
    assert list(read_metrics(run.work_dir)) == [0, 1, 2, 3, 4]


def test_the_learning_rate_is_scaled_with_the_batch(run: TwoProcesses) -> None:
    """The rate is 1e-3 for 16 images, and the batch size is 2 x 2.

    The warm-up would be longer than the run, so it ends before the only step, after 3 iterations.
    """
    assert "Learning rate scaled with the batch size: 0.001 x 4 / 16 = 0.00025" in run.log
    assert "5 iterations of 4 images are 2.50 epochs of 8 images" in run.log
    found = [values["lr"] for (values,) in read_metrics(run.work_dir).values()]
    assert found == pytest.approx([0.00025 * multiplier for multiplier in (0.001, 0.5005, 1, 0.1, 0.1)])


@pytest.mark.usefixtures("modules")
def test_scores_are_those_of_one_process(run: TwoProcesses, tmp_path: Path) -> None:
    """The number of validation images is odd, so one process has one more, and no image counts twice."""
    assert NUM_VAL % 2 == 1
    checkpoint = run.work_dir / "model_final.pth"
    expected = engine.evaluate(engine.load_config(run.config), checkpoint, tmp_path / "eval")
    scores = last_scores(run.work_dir)
    found = {name: scores[name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert found["coco/bbox_AP"] > 0  # otherwise, equal scores would prove little


@pytest.mark.usefixtures("modules")
def test_the_usual_script_evaluates(run: TwoProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tools/train_net.py with --eval-only; the runs above use it for training."""

    def script(checkpoint: Path) -> int:
        overrides = [f"train.init_checkpoint={checkpoint}", f"train.output_dir={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", [SCRIPT, "--config-file", str(run.config), "--eval-only", *overrides])
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert script(tmp_path / "no.pth") == 2
    assert script(Path("")) == 2
    assert script(run.work_dir / "model_final.pth") == 0
    found = json.loads((tmp_path / "out" / "inference" / "metrics.json").read_text())["metrics"]
    assert found["coco/bbox_AP"] == pytest.approx(last_scores(run.work_dir)["coco/bbox_AP"], abs=1e-6)


# Errors of one process


def test_a_batch_that_two_can_not_share(tmp_path: Path, toy_data: Path) -> None:
    config = write_lazy(tmp_path / "tiny.py", toy_data)
    result = twins(
        "train", config, "--work-dir", tmp_path / "run", "--num-gpus", 2, "dataloader.train.total_batch_size=3"
    )
    assert_error(result, "dataloader.train.total_batch_size=3", "a multiple of 2")
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_loss_that_is_not_finite_in_one_process(tmp_path: Path, toy_data: Path) -> None:
    """It ends both processes. The hardest case is the last iteration, after which both would evaluate the model."""
    (tmp_path / "two_processes.py").write_text(MODULE)
    more = (
        "import two_processes\ndataloader.train.mapper._target_ = two_processes.BadMapper\n"
        "dataloader.train.total_batch_size = 4\ntrain.update(max_iter=2, eval_period=9)\n"
        "train.checkpointer.period = 1\n"
    )
    config = write_lazy(tmp_path / "tiny.py", toy_data, "retinanet", more=more)
    process = subprocess.Popen(
        [sys.executable, "-m", "twins_dense", "train", str(config), "--work-dir", "run", "--num-gpus", "2"],
        cwd=tmp_path,
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # all three processes
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: iteration 1: not finite: loss_cls=nan, loss_box_reg=nan")
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000000.pth"
    torch.load(tmp_path / "run" / "model_0000000.pth", weights_only=True)
