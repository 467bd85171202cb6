"""A run that is killed and resumed continues, step by step, like an uninterrupted run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import read_scalars, write_config
from run_fixtures import HALT_HOOK, steps, train_and_kill

from twins_dense.frameworks.mmengine import engine

EPOCHS, ITERATIONS = 4, 4  # 8 images in batches of 2
KILLED_AT = 2 * ITERATIONS + 2  # the iteration of epoch 3 after which the process is killed
HALT = """
custom_imports["imports"].append("halt_hook")
custom_hooks.append(dict(type="HaltHook", iteration={iteration}))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A config with stochastic depth, flips, sampled proposals, a warm-up over 6 of 16 iterations and one step."""
    return write_config(tmp_path_factory.mktemp("resume") / "plain.py", toy_data, epochs=EPOCHS)


def halting_config(config: Path, data: Path, iteration: int) -> Path:
    """The same run, for `train_and_kill`."""
    (config.parent / "halt_hook.py").write_text(HALT_HOOK)
    path = config.parent / f"halt_{iteration}.py"
    return write_config(path, data, epochs=EPOCHS, more=HALT.format(iteration=iteration))


@pytest.fixture(scope="module")
def whole_run(config: Path) -> Path:
    engine.train(engine.load_config(config), config.parent / "whole")
    return config.parent / "whole"


@pytest.fixture(scope="module")
def killed_run(config: Path, toy_data: Path) -> Path:
    """A run that was killed in epoch 3. Tests must not change it; copy it instead."""
    work_dir = config.parent / "killed"
    train_and_kill(halting_config(config, toy_data, KILLED_AT), work_dir, KILLED_AT)
    return work_dir


def test_what_a_kill_leaves(killed_run: Path) -> None:
    names = {path.name for path in killed_run.glob("*.pth")}
    best = {name for name in names if name.startswith("best_coco_segm_AP_epoch_")}
    assert len(best) == 1
    assert names - best == {"epoch_1.pth", "epoch_2.pth"}
    for epoch in (1, 2):
        checkpoint = torch.load(killed_run / f"epoch_{epoch}.pth", weights_only=True)
        assert checkpoint["meta"]["epoch"] == epoch
    assert Path((killed_run / "last_checkpoint").read_text()).name == "epoch_2.pth"


def test_goes_on_as_without_the_kill(config: Path, whole_run: Path, killed_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"  # the folder may be moved before resuming
    shutil.copytree(killed_run, moved)
    result = twins("train", config, "--work-dir", moved, "--resume")
    assert result.code == 0, result.err

    expected = steps(read_scalars(whole_run)[0])
    before, after = (steps(records) for records in read_scalars(moved))
    assert list(expected) == list(range(1, EPOCHS * ITERATIONS + 1))
    assert list(before) == list(range(1, KILLED_AT + 1))
    assert list(after) == list(range(2 * ITERATIONS + 1, EPOCHS * ITERATIONS + 1))  # epochs 3 and 4, whole
    for part in (before, after):
        for step, values in part.items():
            assert len(values) == 8  # lr, loss, its five parts and its mean
            assert values == pytest.approx(expected[step], rel=1e-5, abs=1e-8), step
    # The values are not equal merely because nothing changes.
    losses = [values["loss"] for values in expected.values()]
    assert len(set(losses)) == len(losses)
    assert len({values["lr"] for values in expected.values()}) == 7

    ours, theirs = (torch.load(folder / "epoch_4.pth", weights_only=True) for folder in (moved, whole_run))
    assert ours["meta"]["iter"] == theirs["meta"]["iter"] == EPOCHS * ITERATIONS
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-5, atol=1e-6)
    metrics = [folder.joinpath("metrics.json").read_text() for folder in (moved, whole_run)]
    assert '"iter": 16' in metrics[0] and '"iter": 16' in metrics[1]


def test_another_seed_is_another_run(config: Path, whole_run: Path, tmp_path: Path) -> None:
    """The comparison above can fail: a run with different random numbers has different losses."""
    engine.train(engine.load_config(config, ["randomness.seed=1", "train_cfg.max_epochs=1"]), tmp_path / "other")
    (records,) = read_scalars(tmp_path / "other")
    expected = steps(read_scalars(whole_run)[0])
    found = steps(records)
    assert len(found) == ITERATIONS
    for step, values in found.items():
        assert values["loss"] != pytest.approx(expected[step]["loss"], rel=1e-4)


def test_resuming_a_finished_run_changes_nothing(config: Path, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
    loaded = engine.load_config(config)
    loaded.experiment_name = "finished"  # MMEngine distinguishes runs in one process only by name and second
    runner = engine.train(loaded, tmp_path / "run", resume=True)
    assert (runner.epoch, runner.iter) == (EPOCHS, EPOCHS * ITERATIONS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")} == before


def test_a_kill_before_the_first_checkpoint(config: Path, toy_data: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "early"
    train_and_kill(halting_config(config, toy_data, 1), work_dir, 1)
    assert not list(work_dir.glob("*.pth"))
    result = twins("train", config, "--work-dir", work_dir, "--resume")
    assert_error(result, str(work_dir), "no run to resume", "--resume")
    # Starting without --resume is allowed, because there is nothing to lose.
    result = twins("train", config, "--work-dir", work_dir, "train_cfg.max_epochs=1")
    assert result.code == 0, result.err
    assert (work_dir / "epoch_1.pth").is_file()
