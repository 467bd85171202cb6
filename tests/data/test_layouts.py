"""Each layout of the same images gives the same training targets; missing splits are held out reproducibly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import layout_writers as writers
import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS

from twins_dense.data.coco import load_coco
from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.data.layouts import DataFolder, Split, recognise
from twins_dense.data.toy import make_toy_coco
from twins_dense.errors import TwinsError

Source = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = make_toy_coco(tmp_path_factory.mktemp("source") / "toy", num_train=20, num_val=1, image_size=64)
    return writers.first_images(
        writers.read_json(root / "annotations/instances_train2017.json"), 20
    ), root / "train2017"


@pytest.fixture(scope="module", params=["toy", "photos"])
def source(request: pytest.FixtureRequest) -> Source:
    """Twenty images of toy shapes, and of COCO if they are there."""
    if request.param == "toy":
        return request.getfixturevalue("toy")
    if not COCO_MINI.is_dir():
        pytest.skip(NO_PHOTOS)
    content = writers.read_json(COCO_MINI / "annotations/instances_train2017.json")
    return writers.first_images(content, 20), COCO_MINI / "train2017"


def part(content: dict[str, Any], images: slice) -> dict[str, Any]:
    kept = content["images"][images]
    ids = {image["id"] for image in kept}
    return {**content, "images": kept, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def targets(split: Split, *, masks: bool) -> dict[str, list[tuple[str, np.ndarray, np.ndarray | None]]]:
    """Return the class, the box (x1, y1, x2, y2) and the mask of each object by the stem of the image, in order."""
    assert split.ann_file is not None
    data = load_coco(split.ann_file, split.image_dir)
    name_of = dict(zip(data.category_ids, data.class_names, strict=True))
    found = {}
    for image in data.images:
        objects = []
        for entry in image.annotations:
            x, y, width, height = entry["bbox"]
            mask = decode_segmentation(entry["segmentation"], image.height, image.width) if masks else None
            objects.append((name_of[entry["category_id"]], np.array([x, y, x + width, y + height]), mask))
        found[image.path.stem] = objects
    return found


def assert_same_targets(found: Split, expected: Split, *, masks: bool) -> None:
    ours, theirs = targets(found, masks=masks), targets(expected, masks=masks)
    assert ours.keys() == theirs.keys()
    assert sum(map(len, theirs.values())) >= 10
    for stem, objects in theirs.items():
        assert [name for name, _, _ in ours[stem]] == [name for name, _, _ in objects]
        for (_, box, mask), (_, expected_box, expected_mask) in zip(ours[stem], objects, strict=True):
            np.testing.assert_allclose(box, expected_box, atol=1e-3)
            if mask is not None and expected_mask is not None:
                # Coordinates are rounded to 1/1000 pixel, which can move pixels on the outline.
                assert (mask != expected_mask).sum() <= 2


def write_all(write: Any, root: Path, source: Source, **options: Any) -> None:
    content, image_dir = source
    write(root, "train", part(content, slice(0, 14)), image_dir, **options)
    write(root, "val", part(content, slice(14, 20)), image_dir, **options)


class TestSameTargets:
    """The content of every layout, compared with the COCO files that it was made from."""

    @pytest.fixture
    def expected(self, source: Source, tmp_path: Path) -> DataFolder:
        write_all(writers.write_coco, tmp_path / "coco", source)
        return recognise(tmp_path / "coco", out=tmp_path / "coco-out")

    def test_coco_is_used_as_it_is(self, expected: DataFolder, tmp_path: Path) -> None:
        assert (expected.layout, expected.task, expected.has_masks) == ("COCO", "detection", True)
        assert [split.num_images for split in expected.splits.values()] == [14, 6]
        assert expected.splits["val"] == Split(
            image_dir=tmp_path / "coco/val", num_images=6, ann_file=tmp_path / "coco/annotations/instances_val.json"
        )
        assert not (tmp_path / "coco-out").exists()

    @pytest.mark.parametrize("polygons", [False, True])
    def test_yolo(self, source: Source, expected: DataFolder, tmp_path: Path, polygons: bool) -> None:
        write_all(writers.write_yolo, tmp_path / "yolo", source, polygons=polygons)
        data = recognise(tmp_path / "yolo", out=tmp_path / "out")
        assert (data.layout, data.has_masks, data.classes) == ("YOLO", polygons, expected.classes)
        for name, split in expected.splits.items():
            assert_same_targets(data.splits[name], split, masks=polygons)

    def test_pascal_voc(self, source: Source, expected: DataFolder, tmp_path: Path) -> None:
        write_all(writers.write_pascal_voc, tmp_path / "voc", source)
        data = recognise(tmp_path / "voc", out=tmp_path / "out")
        assert (data.layout, data.has_masks) == ("Pascal VOC", False)
        assert data.classes == tuple(sorted(data.classes)) and set(data.classes) <= set(expected.classes)
        for name, split in expected.splits.items():
            assert_same_targets(data.splits[name], split, masks=False)

    def test_roboflow(self, source: Source, expected: DataFolder, tmp_path: Path) -> None:
        content, image_dir = source
        writers.write_roboflow(tmp_path / "robo", "train", part(content, slice(0, 14)), image_dir)
        writers.write_roboflow(tmp_path / "robo", "valid", part(content, slice(14, 20)), image_dir)
        data = recognise(tmp_path / "robo", out=tmp_path / "out")
        assert (data.layout, data.classes, data.has_masks) == ("Roboflow COCO", expected.classes, True)
        assert data.notes == ("Roboflow's category things has no annotations and is left out.",)
        for name, split in expected.splits.items():
            assert_same_targets(data.splits[name], split, masks=True)

    def test_the_same_bytes_on_a_second_run(self, source: Source, tmp_path: Path) -> None:
        write_all(writers.write_yolo, tmp_path / "yolo", source, polygons=True)
        first, second = (recognise(tmp_path / "yolo", out=tmp_path / name) for name in ("a", "b"))
        for name, split in first.splits.items():
            other = second.splits[name]
            assert split.ann_file is not None and other.ann_file is not None
            assert split.ann_file.read_bytes() == other.ann_file.read_bytes()
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
            "instances_train.json",
            "instances_val.json",
        ]


class TestCocoFolders:
    @pytest.mark.parametrize(
        ("file", "folder"),
        [
            ("annotations/instances_train.json", "train"),
            ("annotations/instances_train.json", "train2017"),
            ("annotations/instances_train.json", "images"),
            ("annotations/instances_train.json", "images/train"),
            ("annotations/instances_train2017.json", "images/train2017"),
            ("annotations/instances_default.json", "images/default"),
            ("annotations/train.json", "train"),
            ("annotations/instances_train.json", "."),
        ],
    )
    def test_where_images_can_be(self, toy: Source, tmp_path: Path, file: str, folder: str) -> None:
        content, image_dir = toy
        root = tmp_path / "data"
        writers.copy_images(root / folder, content, image_dir)
        (root / file).parent.mkdir()
        (root / file).write_text(json.dumps(content))
        data = recognise(root, out=tmp_path / "out")
        assert data.splits["train"].image_dir == root / folder
        assert [split.num_images for split in data.splits.values()] == [18, 2]

    def test_images_that_are_nowhere(self, toy: Source, tmp_path: Path) -> None:
        write_all(writers.write_coco, tmp_path / "data", toy)
        shutil.rmtree(tmp_path / "data/val")
        with pytest.raises(TwinsError, match=r"_val\.json: its images, such as .*\.jpg, are neither in .*val/,"):
            recognise(tmp_path / "data", out=tmp_path / "out")

    def test_two_files_for_a_split(self, toy: Source, tmp_path: Path) -> None:
        write_all(writers.write_coco, tmp_path / "data", toy)
        folder = tmp_path / "data/annotations"
        shutil.copy(folder / "instances_val.json", folder / "instances_val2.json")
        with pytest.raises(TwinsError, match=r"instances_val\.json and instances_val2\.json are both for val"):
            recognise(tmp_path / "data", out=tmp_path / "out")

    def test_different_categories(self, toy: Source, tmp_path: Path) -> None:
        write_all(writers.write_coco, tmp_path / "data", toy)
        path = tmp_path / "data/annotations/instances_val.json"
        content = writers.read_json(path)
        content["categories"][1]["name"] = "square"
        path.write_text(json.dumps(content))
        with pytest.raises(TwinsError, match=r"train and val have different categories, such as .*rectangle.*square"):
            recognise(tmp_path / "data", out=tmp_path / "out")

    def test_images_in_both_splits_are_noted(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        for split in ("train", "val"):
            writers.write_coco(tmp_path / "data", split, content, image_dir)
        writers.copy_images(tmp_path / "data/images", content, image_dir)
        for split in ("train", "val"):
            shutil.rmtree(tmp_path / "data" / split)
        note = "Images in both train and val: 20. The scores will look better than they are."
        assert recognise(tmp_path / "data", out=tmp_path / "out").notes == (note,)

    def test_a_category_with_annotations_is_not_a_dummy(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        writers.write_roboflow(tmp_path / "data", "train", content, image_dir)
        path = tmp_path / "data/train/_annotations.coco.json"
        changed = writers.read_json(path)
        changed["annotations"][0]["category_id"] = 0
        path.write_text(json.dumps(changed))
        assert recognise(tmp_path / "data", out=tmp_path / "out").classes[0] == "things"

    def test_a_dummy_may_have_the_name_of_a_real_category(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        categories = [{**category, "name": "things"} for category in content["categories"][:1]]
        one = [{**entry, "category_id": categories[0]["id"]} for entry in content["annotations"]]
        changed = {**content, "categories": categories, "annotations": one}
        writers.write_roboflow(tmp_path / "data", "train", changed, image_dir)
        data = recognise(tmp_path / "data", out=tmp_path / "out")
        assert data.classes == ("things",)
        assert sum(map(len, targets(data.splits["train"], masks=False).values())) > 10

    def test_masks_need_a_segmentation_of_every_object(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        content = {**content, "annotations": [dict(entry) for entry in content["annotations"]]}
        content["annotations"][3]["segmentation"] = []
        writers.write_coco(tmp_path / "data", "train", content, image_dir)
        assert not recognise(tmp_path / "data", out=tmp_path / "out").has_masks
        content["annotations"][3]["iscrowd"] = 1
        writers.write_coco(tmp_path / "data", "train", content, image_dir)
        assert recognise(tmp_path / "data", out=tmp_path / "out").has_masks


class TestHeldOut:
    def held_out(self, root: Path, out: Path, **options: Any) -> tuple[set[str], set[str]]:
        data = recognise(root, out=out, **options)
        files = [data.splits[name].ann_file for name in ("train", "val")]
        train, val = ({image["file_name"] for image in writers.read_json(file)["images"]} for file in files if file)
        return train, val

    def test_every_image_is_in_one_part(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        writers.write_coco(tmp_path / "data", "train", content, image_dir)
        train, val = self.held_out(tmp_path / "data", tmp_path / "out", holdout=0.25)
        assert len(val) == 5 and len(train) == 15 and not train & val
        assert self.held_out(tmp_path / "data", tmp_path / "out", holdout=0.25, seed=1)[1] != val
        found = [writers.read_json(tmp_path / f"out/instances_{name}.json")["annotations"] for name in ("train", "val")]
        assert sorted(entry["id"] for part in found for entry in part) == sorted(
            a["id"] for a in content["annotations"]
        )

    def test_it_depends_on_names_only(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        writers.write_coco(tmp_path / "a", "train", content, image_dir)
        changed = {**content, "images": content["images"][::-1], "annotations": content["annotations"][5:]}
        writers.write_coco(tmp_path / "b", "train", changed, image_dir)
        assert self.held_out(tmp_path / "a", tmp_path / "a-out") == self.held_out(tmp_path / "b", tmp_path / "b-out")

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_it_is_said(self, toy: Source, tmp_path: Path, split: str) -> None:
        writers.write_coco(tmp_path / "data", split, *toy)
        missing = "training" if split == "val" else "validation"
        note = f"There are no {missing} images: 2 of the 20 images of {split} are held out for validation (seed 0)."
        assert recognise(tmp_path / "data", out=tmp_path / "out").notes == (note,)

    def test_a_test_split_stays(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        writers.write_coco(tmp_path / "data", "train", part(content, slice(0, 14)), image_dir)
        writers.write_coco(tmp_path / "data", "test", part(content, slice(14, 20)), image_dir)
        data = recognise(tmp_path / "data", out=tmp_path / "out")
        assert {name: split.num_images for name, split in data.splits.items()} == {"train": 13, "val": 1, "test": 6}

    @pytest.mark.parametrize("holdout", [0, 1, -0.5, 2])
    def test_bad_fraction(self, tmp_path: Path, holdout: float) -> None:
        with pytest.raises(TwinsError, match=f"holdout={holdout}: give a fraction between 0 and 1"):
            recognise(tmp_path, out=tmp_path / "out", holdout=holdout)

    def test_one_image(self, toy: Source, tmp_path: Path) -> None:
        content, image_dir = toy
        writers.write_coco(tmp_path / "data", "train", part(content, slice(0, 1)), image_dir)
        with pytest.raises(TwinsError, match="1 image cannot be split"):
            recognise(tmp_path / "data", out=tmp_path / "out")


class TestNotRecognised:
    def error(self, root: Path, out: Path) -> str:
        with pytest.raises(TwinsError) as caught:
            recognise(root, out=out)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_it_says_what_was_found_and_looked_for(self, tmp_path: Path) -> None:
        for name in ("pictures", "notes"):
            (tmp_path / "data" / name).mkdir(parents=True)
        message = self.error(tmp_path / "data", tmp_path / "out")
        assert f"data '{tmp_path / 'data'}' is not recognised: it contains notes/, pictures/; looked for" in message
        for words in ("instances_*.json (COCO)", "_annotations.coco.json", "data.yaml", "Annotations/*.xml", "masks/"):
            assert words in message

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        assert "it contains nothing; looked for" in self.error(tmp_path / "data", tmp_path / "out")

    def test_missing(self, tmp_path: Path) -> None:
        assert "no such folder" in self.error(tmp_path / "none", tmp_path / "out")

    def test_two_layouts(self, toy: Source, tmp_path: Path) -> None:
        write_all(writers.write_coco, tmp_path / "data", toy)
        write_all(writers.write_yolo, tmp_path / "data", toy, polygons=True)
        message = self.error(tmp_path / "data", tmp_path / "out")
        assert "could be COCO (annotations/instances_train.json) and YOLO (data.yaml): move one of them" in message

    def test_out_among_the_images(self, toy: Source, tmp_path: Path) -> None:
        write_all(writers.write_coco, tmp_path / "data", toy)
        assert "is inside" in self.error(tmp_path / "data", tmp_path / "data/train/run")
        recognise(tmp_path / "data", out=tmp_path / "data/run")

    def test_a_folder_in_a_folder(self, toy: Source, tmp_path: Path) -> None:
        """Archives often contain one folder; macOS adds another one."""
        write_all(writers.write_coco, tmp_path / "data/inner/data", toy)
        (tmp_path / "data/__MACOSX").mkdir()
        assert recognise(tmp_path / "data", out=tmp_path / "out").root == tmp_path / "data/inner/data"
