"""Hostile data on the command line: one line that says what is wrong, in both engines and both tasks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import layout_writers as writers
import pytest
from cli_fixtures import assert_error, twins
from detection_fixtures import write_config

from twins_dense.data.toy import make_toy_coco

TRAIN = "annotations/instances_train2017.json"
ENGINES = [
    "mmengine",
    pytest.param(
        "detectron2",
        marks=[
            pytest.mark.detectron2,
            pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"),
        ],
    ),
]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_toy_coco(tmp_path / "toy", num_train=4, num_val=2, image_size=64)


def rename(toy: Path, name: str) -> str:
    """Give the first training image another `file_name`, and return the former one."""
    content = writers.read_json(toy / TRAIN)
    before = content["images"][0]["file_name"]
    content["images"][0]["file_name"] = name
    (toy / TRAIN).write_text(json.dumps(content))
    return str(before)


def check(engine: str, toy: Path, tmp_path: Path, *options: str) -> Any:
    if engine == "mmengine":
        return twins("check-data", write_config(tmp_path / "config.py", toy), *options)
    return twins("check-data", "detectron2/mask_rcnn_svt_small_1x", "--data-root", toy, *options)


@pytest.mark.parametrize("engine", ENGINES)
def test_names_that_lead_outside(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if engine == "detectron2":  # its catalog names the folders of COCO 2017
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        (tmp_path / "coco").symlink_to(toy)
    name = rename(toy, "")
    image = (toy / "train2017" / name).rename(tmp_path / "secret.png")
    for outside in ("../../secret.png", str(image.resolve())):
        rename(toy, outside)
        line = assert_error(check(engine, toy, tmp_path), "1 problem: image ", "secret.png is not in the folder")
        assert "add --allow-outside" in line
        result = check(engine, toy, tmp_path, "--skip-bad")
        assert result.code == 0 and "3 images" in result.out, result.err
        result = check(engine, toy, tmp_path, "--allow-outside")
        assert result.code == 0 and "4 images" in result.out and "left out" not in result.out, result.err
        if engine == "mmengine":
            assert_error(twins("check-data", toy), "1 problem: image ", "secret.png is not in the folder")
            assert twins("check-data", toy, "--allow-outside").code == 0


def test_a_dot_dot_inside_the_folder_is_fine(toy: Path, tmp_path: Path) -> None:
    rename(toy, "../train2017/" + rename(toy, ""))
    assert twins("check-data", toy).code == 0
    assert twins("check-data", write_config(tmp_path / "config.py", toy)).code == 0


@pytest.mark.parametrize("name", ["n" * 300, "/" * 5000, "a/" * 3000, "\x00", "", ".", "con\nsole"])
def test_names_that_no_file_can_have(toy: Path, tmp_path: Path, name: str) -> None:
    rename(toy, name)
    for source in (toy, write_config(tmp_path / "config.py", toy)):
        assert_error(twins("check-data", source), "1 problem: image ")
        result = twins("check-data", source, "--skip-bad")
        assert result.code == 0 and "left out 1" in result.out, result.err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": [], "n": ' + "1" * 5000 + "}"])
def test_json_that_python_refuses(toy: Path, tmp_path: Path, text: str) -> None:
    config = write_config(tmp_path / "config.py", toy)
    (toy / TRAIN).write_text(text)
    for arguments in (
        ("check-data", toy),
        ("check-data", config),
        ("train", config, "--work-dir", tmp_path / "run"),
        ("train", config, "--work-dir", tmp_path / "run", "--epochs", 2),
        ("extract", toy / TRAIN, "--out", tmp_path / "out", "--variant", "svt_small", "--weights", "none"),
    ):
        assert_error(twins(*arguments), f"{toy / TRAIN}: ")
