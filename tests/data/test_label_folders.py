"""Folders of images and label maps: names, classes, and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_fixtures import COCO_MINI
from PIL import Image

from twins_dense.data.layouts import DataFolder, Split, recognise
from twins_dense.errors import TwinsError

PHOTOS = COCO_MINI.parent


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(path)


def save_labels(path: Path, values: list[int], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (8, 12))).convert(mode).save(path)


def make(root: Path, labels: str = "labels", suffix: str = ".png", values: tuple[int, ...] = (0, 1, 2)) -> Path:
    for name in "abcd":
        save_image(root / "images" / f"{name}.jpg")
        save_labels(root / labels / f"{name}{suffix}", list(values))
    return root


def read(root: Path, **options: Any) -> DataFolder:
    return recognise(root, out=root.parent / "out", **options)


def error(root: Path) -> str:
    with pytest.raises(TwinsError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


class TestFolders:
    @pytest.mark.parametrize("names", [("training", "validation"), ("train", "val")])
    def test_ade20k(self, root: Path, names: tuple[str, str]) -> None:
        for name in names:
            save_image(root / "images" / name / "a.jpg")
            save_labels(root / "annotations" / name / "a.png", [0, 1, 3, 255])
        data = read(root)
        assert (data.layout, data.task, data.reduce_zero_label) == ("ADE20K", "segmentation", True)
        assert data.classes == ("class 1", "class 2", "class 3")
        expected = Split(image_dir=root / "images" / names[1], num_images=1, label_dir=root / "annotations" / names[1])
        assert data.splits["val"] == expected
        assert expected.image_names() == ["a"] and expected.label_paths() == [root / "annotations" / names[1] / "a.png"]

    @pytest.mark.parametrize("labels", ["labels", "masks", "annotations"])
    @pytest.mark.parametrize("suffix", [".png", "_L.png", "_mask.png"])
    def test_one_split(self, root: Path, labels: str, suffix: str) -> None:
        data = read(make(root, labels, suffix))
        train, val = data.splits["train"], data.splits["val"]
        assert (train.num_images, val.num_images) == (3, 1)
        assert train.label_suffix == suffix and train.names == root.parent / "out/train.txt"
        assert sorted(train.image_names() + val.image_names()) == list("abcd")
        assert all(path.is_file() for path in train.label_paths())
        assert data.notes[-1] == (
            "There are no validation images: 1 of the 4 images of train are held out for validation (seed 0)."
        )

    def test_the_same_lists_on_a_second_run(self, root: Path, tmp_path: Path) -> None:
        make(root)
        for out in ("first", "second"):
            recognise(root, out=tmp_path / out, seed=3)
        for name in ("train.txt", "val.txt"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    def test_images_without_labels_are_left_out(self, root: Path) -> None:
        make(root)
        save_image(root / "images/e.jpg")
        data = read(root)
        assert sum(split.num_images for split in data.splits.values()) == 4
        assert "Images of train without a label map are left out: 1." in data.notes

    def test_an_image_is_not_confused_with_a_longer_name(self, root: Path) -> None:
        for name in ("1", "10", "2"):
            save_image(root / "images" / f"{name}.jpg")
            save_labels(root / "masks" / f"{name}_L.png", [0, 1])
        assert read(root).splits["train"].label_suffix == "_L.png"

    def test_different_suffixes(self, root: Path) -> None:
        make(root)
        save_image(root / "images/e.bmp")
        assert "images have different suffixes: .jpg (4), .bmp (1); convert them" in error(root)

    def test_labels_of_other_images(self, root: Path) -> None:
        save_image(root / "images/a.jpg")
        save_labels(root / "labels/b.png", [1])
        assert "no label map begins with the name of an image, such as a (a label map is b.png)" in error(root)

    def test_two_folders_of_labels(self, root: Path) -> None:
        make(make(root, "masks"))
        assert "which folder contains the labels, labels/ or masks/?" in error(root)

    def test_out_among_the_labels(self, root: Path) -> None:
        make(root)
        with pytest.raises(TwinsError, match="is inside"):
            recognise(root, out=root / "labels/out")


class TestClasses:
    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("classes.json", '["road", "car"]'),
            ("classes.txt", "road\ncar\n"),
            ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:0,0,0::\ncar:9,9,9::\n"),
        ],
    )
    @pytest.mark.parametrize(("values", "reduced"), [((0, 1, 2, 255), True), ((0, 1, 255), False), ((0,), False)])
    def test_lists_of_names(self, root: Path, file: str, text: str, values: tuple[int, ...], reduced: bool) -> None:
        make(root, values=values)
        (root / file).write_text(text)
        data = read(root)
        assert (data.classes, data.reduce_zero_label) == (("road", "car"), reduced)

    @pytest.mark.parametrize(("first", "reduced"), [(0, False), (1, True)])
    def test_numbered_names(self, root: Path, first: int, reduced: bool) -> None:
        make(root, values=(0, 1))
        (root / "classes.json").write_text(json.dumps({first + 1: "car", first: "road", first + 2: "sky"}))
        data = read(root)
        assert (data.classes, data.reduce_zero_label) == (("road", "car", "sky"), reduced)

    def test_names_from_values(self, root: Path) -> None:
        data = read(make(root, values=(0, 1, 3)))
        assert data.classes == ("background", "class 1", "class 2", "class 3") and not data.reduce_zero_label
        assert data.notes[0].startswith("There is no file of class names; label maps use 0 for the background")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('["road"]', "names 1 classes, but label maps have the value 2"),
            ('{"1": "road"}', "names 1 classes, but label maps have the value 2"),
            ('{"2": "road", "3": "car"}', "number them from 0 or 1"),
            ('{"0": "road", "2": "car"}', "number them from 0 or 1"),
            ('{"a": "road"}', "cannot be used"),
            ("[", "cannot be used"),
            ("7", "cannot be used"),
            ("[]", "names the classes []"),
            ('["road", 7, ""]', "names the classes [7, '']"),
        ],
    )
    def test_bad_files(self, root: Path, text: str, words: str) -> None:
        make(root)
        (root / "classes.json").write_text(text)
        message = error(root)
        assert words in message and str(root / "classes.json") in message

    def test_masks_of_0_and_255(self, root: Path) -> None:
        make(root, "masks", values=(0, 255))
        assert "only the values 0 and 255, and 255 means that a pixel is ignored" in error(root)

    def test_colours(self, root: Path) -> None:
        make(root)
        save_labels(root / "labels/c.png", [1], mode="RGB")
        assert read(root).classes == ("background", "class 1", "class 2")  # the check of the data finds the file
        for name in "abd":
            save_labels(root / f"labels/{name}.png", [1], mode="RGB")
        assert "a.png', which has the mode RGB: save one 8-bit value per pixel" in error(root)

    def test_unreadable(self, root: Path) -> None:
        make(root)
        for name in "abcd":
            (root / f"labels/{name}.png").write_text("<html>404</html>")
        assert "no label map can be used; the first is" in error(root)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs real photos: set TWINS_DENSE_TEST_DATA to their folder")
class TestPhotos:
    def test_camvid(self, tmp_path: Path) -> None:
        data = recognise(PHOTOS / "camvid_mini", out=tmp_path)
        assert (data.layout, len(data.classes), data.classes[0], data.reduce_zero_label) == ("ADE20K", 11, "sky", True)
        assert [split.num_images for split in data.splits.values()] == [60, 20]

    def test_ade20k(self, tmp_path: Path) -> None:
        data = recognise(PHOTOS / "ade20k_sample", out=tmp_path)
        assert (len(data.classes), data.classes[0], data.reduce_zero_label) == (150, "wall", True)
        assert [split.num_images for split in data.splits.values()] == [2, 1]
