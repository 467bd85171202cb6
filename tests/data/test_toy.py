"""The toy data set depends only on its seed, is valid COCO data, and is never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twins_dense.data.coco import CocoData, load_coco
from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.data.image_files import read_image
from twins_dense.data.toy import _draw_image, _segmentation, make_toy_coco
from twins_dense.errors import TwinsError

SIZE = 96
ROOT = Path(__file__).resolve().parents[2]


def make(out_dir: Path, seed: int = 0, num_train: int = 7) -> Path:
    return make_toy_coco(out_dir, num_train=num_train, num_val=3, image_size=SIZE, seed=seed)


def load(data_dir: Path, split: str) -> CocoData:
    return load_coco(data_dir / "annotations" / f"instances_{split}.json", data_dir / split)


def hashes(data_dir: Path) -> dict[str, str]:
    paths = sorted(path for path in data_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("toy") / "deep" / "toy")


def test_layout(toy_dir: Path) -> None:
    names = {str(path.relative_to(toy_dir)) for path in toy_dir.rglob("*") if path.is_file()}
    images = {f"train2017/{image_id:012d}.jpg" for image_id in range(1, 8)}
    images |= {f"val2017/{image_id:012d}.jpg" for image_id in range(8, 11)}
    json_files = {"toy.json", "annotations/instances_train2017.json", "annotations/instances_val2017.json"}
    assert names == images | json_files
    assert [path.name for path in toy_dir.parent.iterdir()] == ["toy"]  # the scratch folder is gone


def test_same_seed_same_files(toy_dir: Path, tmp_path: Path) -> None:
    assert hashes(make(tmp_path / "again")) == hashes(toy_dir)


def test_another_seed_other_images(toy_dir: Path, tmp_path: Path) -> None:
    ours, theirs = hashes(make(tmp_path / "other", seed=1)), hashes(toy_dir)
    assert ours.keys() == theirs.keys()
    assert not any(ours[name] == theirs[name] for name in ours)


def test_images_differ(toy_dir: Path) -> None:
    values = [value for name, value in hashes(toy_dir).items() if name.endswith(".jpg")]
    assert len(set(values)) == 10


@pytest.mark.parametrize(("split", "num_images"), [("train2017", 7), ("val2017", 3)])
def test_is_valid_coco_data(toy_dir: Path, split: str, num_images: int) -> None:
    data = load(toy_dir, split)
    assert len(data.images) == num_images
    assert data.category_ids == (1, 2, 5)
    assert data.class_names == ("circle", "rectangle", "triangle")
    assert {entry["category_id"] for image in data.images for entry in image.annotations} == {1, 2, 5}
    for image in data.images:
        assert read_image(image.path).shape == (SIZE, SIZE, 3)
        assert 1 <= len(image.annotations) <= 4
        total = np.zeros((SIZE, SIZE), int)
        for entry in image.annotations:
            mask = decode_segmentation(entry["segmentation"], SIZE, SIZE)
            rows, columns = np.nonzero(mask)
            left, top, width, height = entry["bbox"]
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1 - left, rows.max() + 1 - top) == (width, height)
            assert entry["area"] == mask.sum() > 0
            assert entry["iscrowd"] == 0
            total += mask
        # Masks cover visible parts. Polygons are simplified by half a pixel, so neighbours may share an outline.
        assert (total > 1).mean() < 0.01


def test_masks_lie_on_the_shapes(toy_dir: Path) -> None:
    """Shapes are brighter than the dark background, so their brightest channel is high only inside the mask."""
    for image in load(toy_dir, "train2017").images:
        brightness = read_image(image.path).max(axis=2) / 255
        inside = np.zeros((SIZE, SIZE), bool)
        for entry in image.annotations:
            inside |= decode_segmentation(entry["segmentation"], SIZE, SIZE).astype(bool)
        assert np.median(brightness[inside]) > 0.65
        assert np.median(brightness[~inside]) < 0.5
        # A mask shifted by a few pixels would include background on one side.
        assert (brightness[inside] > 0.55).mean() > 0.95


def test_visible_parts_are_kept() -> None:
    """The masks of an image do not overlap, and none of them is tiny."""
    for seed in range(40):
        _, objects = _draw_image(np.random.default_rng(seed), SIZE, first_class=seed % 3)
        masks = np.stack([mask for _, mask in objects])
        assert masks.sum(axis=0).max() == 1
        assert masks.sum(axis=(1, 2)).min() >= 20
        assert objects[0][0] == seed % 3


class TestSegmentation:
    def test_one_part_is_a_polygon(self) -> None:
        mask = np.zeros((31, 47), bool)
        mask[5:19, 7:40] = True
        segmentation = _segmentation(mask)
        assert isinstance(segmentation, list) and len(segmentation) == 1
        np.testing.assert_array_equal(decode_segmentation(segmentation, 31, 47), mask)
        points = np.array(segmentation[0]).reshape(-1, 2)
        np.testing.assert_allclose((points.min(axis=0) + points.max(axis=0)) / 2, ((7 + 40) / 2, (5 + 19) / 2))

    def test_a_circle_loses_little(self) -> None:
        rows, columns = np.mgrid[:53, :61]
        mask = (rows - 25) ** 2 + (columns - 30) ** 2 < 18**2
        decoded = decode_segmentation(_segmentation(mask), 53, 61).astype(bool)
        assert (decoded & mask).sum() / (decoded | mask).sum() > 0.97

    @pytest.mark.parametrize("rows", [slice(10, 12), slice(5, 19)], ids=["hole", "two parts"])
    def test_holes_and_parts_are_run_lengths(self, rows: slice) -> None:
        mask = np.zeros((31, 47), bool)
        mask[5:19, 7:40] = True
        mask[rows, 20:23] = False
        segmentation = _segmentation(mask)
        assert isinstance(segmentation, dict)
        json.dumps(segmentation)
        np.testing.assert_array_equal(decode_segmentation(segmentation, 31, 47), mask)


class TestExistingFolder:
    def test_reuse_writes_nothing(self, tmp_path: Path) -> None:
        data_dir = make(tmp_path / "toy")
        before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
        assert make(data_dir) == data_dir
        assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before

    def test_other_parameters_are_refused(self, toy_dir: Path) -> None:
        before = hashes(toy_dir)
        with pytest.raises(TwinsError, match=r"^.*toy: contains .*'num_train': 7.*, not .*'num_train': 8.*$"):
            make(toy_dir, num_train=8)
        assert hashes(toy_dir) == before

    def test_a_foreign_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("keep me")
        with pytest.raises(TwinsError, match="exists and is not a toy data set"):
            make(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("name", ["train2017/000000000003.jpg", "annotations/instances_val2017.json"])
    def test_an_incomplete_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        data_dir = make(tmp_path / "toy")
        (data_dir / name).unlink()
        with pytest.raises(TwinsError, match="is incomplete"):
            make(data_dir)

    def test_a_failure_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("twins_dense.data.toy._write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "toy")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("num_train", 0), ("num_val", 0), ("image_size", 63), ("seed", -1)])
def test_small_parameters(tmp_path: Path, name: str, value: int) -> None:
    parameters = {"num_train": 1, "num_val": 1, "image_size": 64, "seed": 0, name: value}
    with pytest.raises(TwinsError, match=f"^{name}={value}: must be "):
        make_toy_coco(tmp_path / "toy", **parameters)
    assert list(tmp_path.iterdir()) == []


class TestScript:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "datasets" / "make_toy_coco.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def test_help_shows_an_example(self) -> None:
        result = self.run("--help")
        assert result.returncode == 0
        assert "python datasets/make_toy_coco.py data/toy_coco" in result.stdout

    def test_makes_and_refuses(self, tmp_path: Path) -> None:
        sizes = ["--num-val", "2", "--image-size", "64"]
        result = self.run(str(tmp_path / "toy"), "--num-train", "3", *sizes)
        assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'toy'}\n")
        assert len(load(tmp_path / "toy", "train2017").images) == 3
        result = self.run(str(tmp_path / "toy"), "--num-train", "4", *sizes)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1 and "choose another folder" in result.stderr
