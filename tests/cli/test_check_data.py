"""`twins-dense check-data` with folders: what it shows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import layout_writers as writers
import pytest
from cli_fixtures import assert_error, twins
from detection_fixtures import write_config
from PIL import Image

from twins_dense.data.toy import make_toy_coco


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_toy_coco(tmp_path / "toy", num_train=30, num_val=3, image_size=64)


def change(ann_file: Path, index: int, **changes: object) -> None:
    content = writers.read_json(ann_file)
    content["annotations"][index].update(changes)
    ann_file.write_text(json.dumps(content))


def test_a_folder_of_objects(toy: Path) -> None:
    result = twins("check-data", toy)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:4] == [
        "data",
        "  COCO data with boxes and masks: 30 train + 3 val images, 3 classes (circle, rectangle, triangle)",
        "training images",
        "  image size: 64x64 pixels",
    ]
    assert [line for line in lines if not line.startswith(" ")] == [
        "data",
        "training images",
        "suggested settings",
        "checks",
    ]
    assert any(line.split()[:2] == ["--epochs", "34"] for line in lines)
    assert lines[-2:] == ["  train: checked 30 images", "  val: checked 3 images"]


def test_a_folder_of_label_maps(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / split / "a.jpg")
        Image.new("L", (40, 30), 2).save(tmp_path / "annotations" / split / "a.png")
    result = twins("check-data", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "  ADE20K data with label maps: 1 train + 1 val images, 2 classes (class 1, class 2)" in result.out
    assert "  warning: 1 class never occurs in the training images: class 1" in result.out
    Image.new("L", (30, 40), 2).save(tmp_path / "annotations/validation/a.png")
    assert_error(twins("check-data", tmp_path), "1 × label whose size differs from that of its image")
    assert_error(twins("check-data", tmp_path, "--skip-bad"), "no image is left")


def test_the_first_twenty_problems_are_listed(toy: Path) -> None:
    for path in (toy / "train2017").iterdir():
        path.unlink()
    assert_error(twins("check-data", toy), "are neither in")
    content = writers.read_json(toy / "annotations/instances_train2017.json")
    Image.new("RGB", (64, 64)).save(toy / "train2017" / content["images"][0]["file_name"])
    result = twins("check-data", toy)
    assert_error(result, "29 problems, the first: image", content["images"][1]["file_name"])
    listed = [line for line in result.out.splitlines() if line.endswith("is missing")]
    assert len(listed) == 20 and result.out.splitlines()[-1] == "… and 9 more"


def test_the_problems_of_a_config_are_listed_as_well(toy: Path, tmp_path: Path) -> None:
    for path in (toy / "train2017").iterdir():
        path.unlink()
    config = write_config(tmp_path / "config.py", toy)
    result = twins("check-data", config)
    assert_error(result, "30 problems, the first: image", "is missing")
    assert [line.endswith("is missing") for line in result.out.splitlines()] == [True] * 20 + [False]
    assert result.out.splitlines()[-1] == "… and 10 more"


def test_skip_bad(toy: Path) -> None:
    change(toy / "annotations/instances_train2017.json", 2, category_id=77)
    assert_error(twins("check-data", toy), "1 problem: annotation", "unknown category id 77")
    result = twins("check-data", toy, "--skip-bad")
    assert result.code == 0, result.err
    assert "  train: checked 30 images, left out 1:" in result.out and "unknown category id 77" in result.out


def test_strict(toy: Path) -> None:
    change(toy / "annotations/instances_train2017.json", 2, bbox=[3, 4, 5, 0])
    result = twins("check-data", toy)
    assert result.code == 0, result.err
    assert "train: checked 30 images, left out 1:" in result.out and "[3, 4, 5, 0] has no area" in result.out
    assert_error(twins("check-data", toy, "--strict"), "1 problem: annotation", "[3, 4, 5, 0] has no area")


def test_problems_of_other_layouts(toy: Path, tmp_path: Path) -> None:
    content = writers.read_json(toy / "annotations/instances_train2017.json")
    content = writers.first_images(content, 6)
    writers.write_yolo(tmp_path / "yolo", "train", content, toy / "train2017", polygons=True)
    path = sorted((tmp_path / "yolo/labels/train").iterdir())[0]
    path.write_text(path.read_text() + "9 0.5 0.5 0.1 0.1\n")
    assert_error(twins("check-data", tmp_path / "yolo"), "1 problem", f"{path}, line", "class 9 is not one of 0 to 2")
    result = twins("check-data", tmp_path / "yolo", "--skip-bad")
    assert result.code == 0, result.err
    assert "left out 1:" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model.num_classes=3",), "'model.num_classes=3' goes with a config"),
        (("--data-root", "x"), "'--data-root' goes with a config"),
    ],
)
def test_options_of_configs(toy: Path, arguments: tuple[str, ...], words: str) -> None:
    assert_error(twins("check-data", toy, *arguments), words, "is a folder")


def test_strict_is_about_boxes() -> None:
    assert_error(twins("check-data", "mmseg/semantic_fpn_svt_small_80k", "--strict"), "--strict", "segmentation")


def test_an_unknown_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert_error(twins("check-data", tmp_path), "is not recognised", "looked for")
