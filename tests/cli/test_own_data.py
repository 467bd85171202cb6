"""`train --data`, `init` and `eval` on folders whose layout is recognised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from cli_fixtures import assert_error, snapshot, twins
from detection_fixtures import TINY_SVT, write_config
from mmengine.config import Config

from twins_dense.cli.options import RECIPES
from twins_dense.frameworks.options import Recipe

TINY_BACKBONE = f"model.backbone.variant={TINY_SVT!r}"
SHIPPED = "torchvision/mask_rcnn_svt_small_1x"


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A copy of the toy data with another number of classes than any config has, and with small objects."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    shutil.copytree(toy_data, folder)
    for file in (folder / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 77, "name": "unicorn"})
        file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, own_data: Path) -> tuple[Path, str]:
    """The work directory and the console output of a run of one epoch."""
    folder = tmp_path_factory.mktemp("own_run")
    config = write_config(folder / "own.py", folder / "elsewhere")
    work_dir = folder / "work"
    result = twins("train", config, "--data", own_data, "--work-dir", work_dir, "--epochs", 1, "--size", 64)
    assert result.code == 0, result.err
    return work_dir, result.out


class TestTrain:
    def test_the_data_decides(self, run: tuple[Path, str], own_data: Path) -> None:
        work_dir, out = run
        assert "COCO data with boxes and masks: 8 train + 5 val images, 4 classes" in out
        assert "unicorn" in out
        assert "--epochs 1" in out and "As you chose." in out
        (path,) = work_dir.glob("*.py")
        config = Config.fromfile(path)
        assert config.model.num_classes == 4
        assert config.model.min_size == 64
        assert config.train_cfg.max_epochs == 1
        assert Path(config.train_dataloader.dataset.image_dir) == own_data / "train2017"
        checkpoint = torch.load(next(work_dir.glob("epoch_1.pth")), weights_only=True)
        assert list(checkpoint["meta"]["dataset_meta"]["classes"])[-1] == "unicorn"

    def test_an_earlier_run_keeps_its_files(self, run: tuple[Path, str], own_data: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "again.py", tmp_path / "elsewhere")
        before = snapshot(run[0])
        assert_error(twins("train", config, "--data", own_data, "--work-dir", run[0]), "already contains a run")
        assert_error(twins("eval", run[0], "--data", own_data, "--work-dir", run[0]), "training run")
        assert snapshot(run[0]) == before

    def test_overrides_have_the_last_word(self, tmp_path: Path, own_data: Path) -> None:
        config = write_config(tmp_path / "last_word.py", tmp_path / "elsewhere")
        result = twins(
            "train", config, "--data", own_data, "--work-dir", tmp_path / "out", "model.num_classes=3", "--epochs", 1
        )
        assert_error(result, "4 categories", "3 classes")
        assert not list((tmp_path / "out").glob("*.pth"))

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            (["--data", "missing"], ["'", "missing", "no such folder"]),
            (["--anchor-sizes", "8,x"], ["--anchor-sizes", "8,x"]),
            (["--anchor-sizes", "8,16"], ["8", "16", "5"]),
            (["--freeze", "half"], ["half"]),
            (["--freeze", "stages:9"], ["stages:9"]),
            (["--init", "missing.pth"], ["missing.pth"]),
            (["--weights", "svt_smal.in1k"], ["svt_smal.in1k"]),
            (["--best", "coco/bbox_APx"], ["coco/bbox_APx"]),
        ],
    )
    def test_bad_options(self, options: list[str], parts: list[str], tmp_path: Path, own_data: Path) -> None:
        config = write_config(tmp_path / "bad_options.py", own_data)
        data = () if "--data" in options else ("--data", own_data)
        result = twins("train", config, *data, *options, "--epochs", 1, "--work-dir", tmp_path / "out")
        assert_error(result, *parts)
        assert not list(tmp_path.glob("out/*.pth"))

    @pytest.mark.parametrize(
        "options", [["--epochs", "0"], ["--size", "3"], ["--batch", "0"], ["--lr", "0"], ["--recipe", "coco"]]
    )
    def test_options_out_of_range(self, options: list[str]) -> None:
        result = twins("train", SHIPPED, *options)
        assert result.code == 2 and options[0] in result.err

    def test_recipes(self) -> None:
        assert get_args(Recipe) == RECIPES

    def test_two_roots(self, own_data: Path) -> None:
        result = twins("train", SHIPPED, "--data", own_data, "--data-root", own_data)
        assert result.code == 2 and "exclude each other" in result.err


class TestInit:
    def test_equals_train(self, run: tuple[Path, str], own_data: Path, tmp_path: Path) -> None:
        base = write_config(tmp_path / "own.py", tmp_path / "elsewhere")
        result = twins("init", own_data, "--config", base, "--out", tmp_path / "mine", "--epochs", 1, "--size", 64)
        assert result.code == 0, result.err
        path = tmp_path / "mine" / "config.py"
        assert result.out.splitlines()[-1] == f"train it with: twins-dense train {path}"
        assert "unicorn" in path.read_text().partition("\n\n")[0]
        written, trained = Config.fromfile(path), Config.fromfile(next(run[0].glob("*.py")))
        for key in ("model", "optim_wrapper", "param_scheduler", "train_cfg", "train_dataloader"):
            assert written[key] == trained[key], key

    def test_can_be_trained(self, own_data: Path, tmp_path: Path) -> None:
        base = write_config(tmp_path / "trainable.py", tmp_path / "elsewhere")
        assert twins("init", own_data, "--config", base, "--out", tmp_path / "mine", "--epochs", 1).code == 0
        result = twins("train", tmp_path / "mine" / "config.py", "--work-dir", tmp_path / "work")
        assert result.code == 0, result.err

    def test_nothing_is_lost(self, own_data: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert_error(twins("init", own_data, "--out", tmp_path), "not empty", "--out")
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_not_a_data_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        assert_error(twins("init", tmp_path / "data", "--out", tmp_path / "mine"), "not recognised")
        assert not (tmp_path / "mine").exists()


class TestEval:
    def metrics(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "metrics.json").read_text())["metrics"]

    def test_a_run_needs_no_config(self, run: tuple[Path, str], own_data: Path) -> None:
        work_dir, _ = run
        result = twins("eval", work_dir)
        assert result.code == 0, result.err
        (found,) = work_dir.with_name("work_eval").iterdir()  # beside the run
        assert self.metrics(found) == pytest.approx(self.metrics(work_dir), abs=1e-6, nan_ok=True)

    def test_another_data_folder(self, run: tuple[Path, str], own_data: Path, tmp_path: Path) -> None:
        work_dir, _ = run
        result = twins("eval", work_dir / "epoch_1.pth", "--data", own_data, "--work-dir", tmp_path / "out")
        assert result.code == 0, result.err
        assert self.metrics(tmp_path / "out") == pytest.approx(self.metrics(work_dir), abs=1e-6, nan_ok=True)

    def test_too_many_arguments(self, run: tuple[Path, str]) -> None:
        result = twins("eval", run[0], "photo.jpg")
        assert result.code == 2 and "photo.jpg" in result.err
