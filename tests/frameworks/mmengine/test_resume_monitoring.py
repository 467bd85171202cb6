"""Runs with evaluations resume exactly: averaged weights, best checkpoint, early stopping and all files of metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import write_config
from run_fixtures import HALT_HOOK, train_and_kill, train_and_kill_in_evaluation
from segmentation_fixtures import write_config as write_segmentation_config
from torch import Tensor

from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.options import MonitoringOptions

# Early stopping counts evaluations, but does not stop these runs.
OPTIONS = MonitoringOptions(ema=True, patience=3, val_loss=True)
HALTING = 'custom_imports["imports"].append("halt_hook")\n'
_TIMES = ("time", "data_time", "eta")
_OF_THIS_START = ("cfg", "config", "experiment_name", "mmengine_version")
# MMEngine notes the present position here whenever it starts.
_POSITION = (".message_hub.runtime_info.epoch", ".message_hub.runtime_info.iter")


def write_monitored(path: Path, config: Path) -> Path:
    loaded = engine.load_config(config)
    engine.set_monitoring(loaded, OPTIONS)
    loaded.dump(path)
    return path


def halting(config: Path, hook: str, iteration: int) -> Path:
    """The same run with a hook that stops it."""
    (config.parent / "halt_hook.py").write_text(HALT_HOOK)
    path = config.with_name(f"{hook}_{iteration}.py")
    more = f"{HALTING}custom_hooks.append(dict(type={hook!r}, iteration={iteration}))\n"
    path.write_text(config.read_text() + more)
    return path


def train(config: Path, work_dir: Path, *, resume: bool = False) -> None:
    engine.train(engine.load_config(config), work_dir, resume=resume)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A config of 3 epochs of 4 iterations, which has been run in the folder `whole`."""
    folder = tmp_path_factory.mktemp("resume_detector")
    config = write_monitored(folder / "monitored.py", write_config(folder / "plain.py", toy_data, epochs=3))
    train(config, folder / "whole")
    return config


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory, label_data: Path) -> Path:
    """The same for 8 iterations, with an evaluation every 4 and a checkpoint every 3."""
    folder = tmp_path_factory.mktemp("resume_segmentor")
    plain = write_segmentation_config(folder / "plain.py", label_data)
    config = write_monitored(folder / "monitored.py", plain)
    train(config, folder / "whole")
    return config


def state_of(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a checkpoint by path, without times and the names of folders and runs."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found: dict[str, Any] = {}
        for key, inner in items:
            if key not in _OF_THIS_START and str(key).rpartition("/")[2] not in _TIMES:
                found |= state_of(inner, f"{path}.{key}")
        return found
    if isinstance(value, str) and value.endswith(".pth"):
        value = Path(value).name
    return {} if path in _POSITION else {path: value}


def assert_same_run(found: Path, expected: Path) -> None:
    """Compare the checkpoints bit by bit, and the files of metrics but for times."""
    names = sorted(path.name for path in expected.glob("*.pth"))
    assert sorted(path.name for path in found.glob("*.pth")) == names
    assert sum(name.startswith("best_") for name in names) == 1
    for name in names:
        ours, theirs = (state_of(torch.load(folder / name, weights_only=True)) for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        wrong = [key for key, value in theirs.items() if not same(ours[key], value)]
        assert wrong == [], name
        assert any("ema_state_dict" in key for key in theirs)
        if not name.startswith("best_"):
            assert any("early_stopping.wait_count" in key for key in theirs) or name in ("epoch_1.pth", "iter_3.pth")
    assert (found / "metrics.json").read_text() == (expected / "metrics.json").read_text()
    assert records_of(found) == records_of(expected)
    samples = [
        {str(path.relative_to(f)): path.read_bytes() for path in f.glob("samples/*/*")} for f in (found, expected)
    ]
    assert samples[0] == samples[1] and samples[0]


def same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor):
        return torch.equal(value, other) or bool(value.isnan().all() and other.isnan().all())
    return value == other or (value != value and other != other)


def records_of(work_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in r.items() if name not in _TIMES} for r in records]


class TestDetection:
    def test_killed_in_training(self, detector: Path, tmp_path: Path) -> None:
        """In epoch 3, two iterations after the checkpoint."""
        work_dir = tmp_path / "killed"
        train_and_kill(halting(detector, "HaltHook", 10), work_dir, 10)
        assert [record["iter"] for record in records_of(work_dir)][-2:] == [9, 10]
        moved = work_dir.rename(tmp_path / "moved")  # the best checkpoint moves with the folder
        train(detector, moved, resume=True)
        assert_same_run(moved, detector.parent / "whole")

    def test_killed_in_an_evaluation(self, detector: Path, tmp_path: Path) -> None:
        """The checkpoint of epoch 2 exists, but its scores do not."""
        work_dir = tmp_path / "killed"
        train_and_kill_in_evaluation(halting(detector, "HaltInEvaluationHook", 8), work_dir)
        assert (work_dir / "epoch_2.pth").exists()
        content = json.loads((work_dir / "metrics.json").read_text())
        assert (content["epoch"], content["iter"]) == (1, 4)  # not yet those of epoch 2
        (work_dir / "halted").unlink()
        train(detector, work_dir, resume=True)
        assert_same_run(work_dir, detector.parent / "whole")

    def test_averaged_weights_need_the_option(self, detector: Path) -> None:
        result = twins("train", detector.with_name("plain.py"), "--work-dir", detector.parent / "whole", "--resume")
        assert_error(result, "epoch_3.pth", "add --ema")


class TestSegmentation:
    def test_killed_between_an_evaluation_and_its_checkpoint(self, segmentor: Path, tmp_path: Path) -> None:
        """After iteration 5: the evaluation of iteration 4 is done, but the last checkpoint is that of iteration 3."""
        work_dir = tmp_path / "killed"
        train_and_kill(halting(segmentor, "HaltHook", 5), work_dir, 5)
        assert json.loads((work_dir / "metrics.json").read_text())["iter"] == 4
        train(segmentor, work_dir, resume=True)
        assert_same_run(work_dir, segmentor.parent / "whole")

    def test_killed_in_the_last_evaluation(self, segmentor: Path, tmp_path: Path) -> None:
        work_dir = tmp_path / "killed"
        train_and_kill_in_evaluation(halting(segmentor, "HaltInEvaluationHook", 8), work_dir)
        assert json.loads((work_dir / "metrics.json").read_text())["iter"] == 4
        train(segmentor, work_dir, resume=True)
        assert_same_run(work_dir, segmentor.parent / "whole")
