"""The config that a run writes into its work directory can be given back, with overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detection_fixtures import Run
from run_fixtures import config_of

from twins_dense.frameworks import engine_of
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.engine import default_work_dir, load_config


@pytest.fixture(params=["detection", "segmentation"])
def run(request: pytest.FixtureRequest) -> Run:
    """A finished run, whose config is the stored one."""
    run = request.getfixturevalue("tiny_run" if request.param == "detection" else "segmentation_run")
    return Run(run.work_dir / "tiny.py", run.data, run.work_dir, run.checkpoint)


def length(run: Run) -> str:
    return "train_cfg.max_epochs=1" if run.checkpoint.name.startswith("epoch") else "train_cfg.max_iters=4"


def test_it_has_no_settings_of_that_run(run: Run) -> None:
    """The folder may be moved, and the next run may use another launcher."""
    config = load_config(run.config)
    assert not {"work_dir", "experiment_name", "launcher", "resume"} & config.keys()
    assert default_work_dir(config) == Path("work_dirs/tiny")
    assert str(run.work_dir) not in run.config.read_text()
    assert engine_of(run.config) is engine


def test_it_trains_as_the_original(run: Run, tmp_path: Path) -> None:
    original = Run(run.work_dir.parent / "tiny.py", run.data, run.work_dir, run.checkpoint)
    states = []
    for number, config in enumerate((config_of(original, [length(run)]), config_of(run, [length(run)]))):
        engine.train(config, tmp_path / str(number))
        (last,) = (tmp_path / str(number)).glob("[ei]*_[14].pth")
        states.append(torch.load(last, weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    texts = [next((tmp_path / name).glob("*.py")).read_text() for name in "01"]
    assert texts[0] == texts[1]  # so the config that this run has stored can be given back, too


def test_it_evaluates(run: Run, tmp_path: Path) -> None:
    loader = "val_dataloader.num_workers=0"  # an override
    found = engine.evaluate(config_of(run, [loader]), run.checkpoint, tmp_path / "evaluation")
    original = Run(run.work_dir.parent / "tiny.py", run.data, run.work_dir, run.checkpoint)
    assert found == engine.evaluate(config_of(original), run.checkpoint, tmp_path / "original")


def test_after_an_evaluation_with_augmentation(segmentation_run: Run, tmp_path: Path) -> None:
    """The stored model is wrapped for test-time augmentation, which is undone for training, and not repeated."""
    run = segmentation_run
    config = config_of(run)
    engine.set_tta(config)
    expected = engine.evaluate(config, run.checkpoint, tmp_path / "evaluation")
    stored = Run(tmp_path / "evaluation" / "tiny.py", run.data, run.work_dir, run.checkpoint)
    config = config_of(stored)
    engine.set_tta(config)
    assert engine.evaluate(config, run.checkpoint, tmp_path / "again") == expected
    engine.train(config_of(stored, ["train_cfg.max_iters=1"]), tmp_path / "run")
    assert (tmp_path / "run" / "iter_1.pth").is_file()
