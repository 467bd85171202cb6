"""The config.yaml of a run is a config for `train`, `eval` and `predict`, and reading it runs no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from d2_fixtures import CONFIGS, MARKS, NAMES, clean_detectron2, engine, write_lazy  # noqa: F401  (a fixture)
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf
from PIL import Image

pytestmark = MARKS


def dump(name: str, path: Path, *overrides: str) -> Any:
    """Write a shipped config as detectron2 does at the start of a run, and return it."""
    config = engine.load_config(CONFIGS / name, overrides)
    LazyConfig.save(config, str(path))
    return config


@pytest.mark.parametrize("name", [*(f"{name}.py" for name in NAMES), "mask_rcnn_svt_small_1x.yaml"])
def test_a_dump_equals_its_config(name: str, tmp_path: Path) -> None:
    dump(name, tmp_path / "config.yaml")
    again = engine.load_config(tmp_path / "config.yaml")
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


def test_the_model_of_a_dump(tmp_path: Path) -> None:
    models = []
    for config in (
        dump("mask_rcnn_svt_small_1x.py", tmp_path / "config.yaml"),
        engine.load_config(tmp_path / "config.yaml"),
    ):
        with torch.device("meta"):
            models.append({name: value.shape for name, value in instantiate(config.model).state_dict().items()})
    assert models[0] == models[1]


def test_overrides(tmp_path: Path) -> None:
    dump("retinanet_svt_small_1x.py", tmp_path / "config.yaml")
    overrides = ["optimizer.lr=3", "optimizer.eps=0.5", "model.num_classes=7", "train.max_iter=9"]
    config = engine.load_config(tmp_path / "config.yaml", overrides)
    assert (config.optimizer.lr, config.optimizer.eps, config.lr_multiplier.max_iter) == (3, 0.5, 9)
    assert config.model.head.num_classes == 7
    engine.set_data_root(config, "elsewhere")
    assert config.dataloader.train.dataset.data_root == "elsewhere"


def refused(path: Path, *parts: str) -> None:
    result = twins("train", path, "--work-dir", path.parent / "run")
    assert_error(result, repr(str(path)), *parts)
    assert not (path.parent / "run").exists()


class TestRefused:
    @pytest.mark.parametrize("is_lazy", [True, False])
    @pytest.mark.parametrize(
        "value",
        [
            "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [TRACE]]",
            "!!python/object/new:os.system [touch TRACE]",
            "!!python/name:os.system ''",
            "!!python/module:os ''",
            "!!python/object:detectron2.structures.Boxes {tensor: 1}",
        ],
    )
    def test_objects(self, tmp_path: Path, is_lazy: bool, value: str) -> None:
        path = tmp_path / "config.yaml"
        if is_lazy:
            dump("retinanet_svt_small_1x.py", path)
        text = path.read_text() if is_lazy else "SOLVER: {}\n"
        path.write_text(f"{text}extra: {value.replace('TRACE', str(tmp_path / 'trace'))}\n")
        refused(path, "contains a Python object", "python/", "use the Python config of the run")
        assert not (tmp_path / "trace").exists()

    def test_a_dump_that_detectron2_pickles(self, tmp_path: Path) -> None:
        config = engine.load_config(CONFIGS / "retinanet_svt_small_1x.py")
        config.model.head.norm = lambda channels: None
        LazyConfig.save(config, str(tmp_path / "config.yaml"))
        assert (tmp_path / "config.yaml.pkl").exists()
        refused(tmp_path / "config.yaml.pkl", "is a pickle, which can run code")
        if (tmp_path / "config.yaml").exists():
            refused(tmp_path / "config.yaml", "objects are not read from YAML or pickles")

    @pytest.mark.parametrize("content", ["", "7\n", "[model, train]\n"])
    def test_no_settings(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.yaml").write_text(content)
        refused(tmp_path / "config.yaml", "cannot be read")

    def test_a_shape_with_an_unknown_field(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        dump("retinanet_svt_small_1x.py", path)
        path.write_text(path.read_text().replace("{channels: 256, height", "{chanels: 256, height"))
        refused(path, "cannot be read", "chanels")


def test_train_eval_and_predict(tmp_path: Path, toy_data: Path) -> None:
    config = write_lazy(tmp_path / "tiny.py", toy_data, more="train.update(max_iter=2)\n")
    assert twins("train", config, "--work-dir", tmp_path / "first", "train.seed=3").code == 0
    written = tmp_path / "first" / "config.yaml"
    config.unlink()

    result = twins("train", written, "--work-dir", tmp_path / "second")
    assert result.code == 0, result.err
    first, second = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("first", "second"))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    result = twins("train", written, "--work-dir", tmp_path / "third", "train.max_iter=1", "optimizer.lr=0.1")
    assert result.code == 0, result.err
    assert torch.load(tmp_path / "third" / "model_final.pth", weights_only=True)["iteration"] == 0

    checkpoint = tmp_path / "first" / "model_final.pth"
    result = twins("eval", written, checkpoint, "--work-dir", tmp_path / "eval", "dataloader.test.dataset.indices=2")
    assert result.code == 0, result.err
    assert "coco/bbox_AP" in json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]

    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(tmp_path / "photo.png")
    option = "model.roi_heads.box_predictor.test_topk_per_image=3"
    result = twins(
        "predict", written, checkpoint, tmp_path / "photo.png", "--out", tmp_path / "out", "--score", 0, option
    )
    assert result.code == 0, result.err
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entry["detections"]) == 3


@pytest.mark.parametrize("part", ["lr_multiplier", "dataloader"])
def test_a_part_is_missing(tmp_path: Path, part: str) -> None:
    """The file is not mistaken for one for CfgNode, about whose keys the error would be."""
    config = engine.load_config(CONFIGS / "retinanet_svt_small_1x.py")
    del config[part]
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    refused(tmp_path / "config.yaml", f"has no {part}", "a complete experiment")


def test_a_yaml_run(tmp_path: Path) -> None:
    """The dump of a translated YAML file has the settings of the LazyConfig."""
    dump("mask_rcnn_svt_small_1x.yaml", tmp_path / "config.yaml", "SOLVER.BASE_LR=0.5")
    config = engine.load_config(tmp_path / "config.yaml", ["train.max_iter=5"])
    assert (config.optimizer.lr, config.train.max_iter) == (0.5, 5)
    assert "TWINS" in OmegaConf.to_container(config)["model"]["cfg"]
