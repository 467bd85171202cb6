"""Data in COCO format: each kind of bad input gives its own error, and skipping leaves out exactly the bad entries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS
from PIL import Image

from twins_dense.data.coco import CocoData, load_coco
from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.data.image_files import read_image
from twins_dense.data.problems import DataError
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 47, 31


def annotation(annotation_id: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [5.0, 7.0, 11.0, 13.0],
        "area": 143.0,
        "iscrowd": 0,
        "segmentation": [[5.0, 7.0, 16.0, 7.0, 16.0, 20.0, 5.0, 20.0]],
        **changes,
    }


class Folder:
    """A valid data set of three images (ids 2, 5, 9) with two annotations each, in which tests break one thing."""

    def __init__(self, root: Path) -> None:
        self.ann_file = root / "things.json"
        self.image_dir = root / "images"
        self.image_dir.mkdir()
        self.content: dict[str, Any] = {
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            "images": [self.entry(9, "nine.png"), self.entry(2, "two.jpg"), self.entry(5, "five.jpg")],
            "annotations": [annotation(10 * image_id + k, image_id) for image_id in (2, 5, 9) for k in (1, 2)],
        }
        rng = np.random.default_rng(0)
        for entry in self.content["images"]:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.image_dir / entry["file_name"])

    @staticmethod
    def entry(image_id: int, file_name: str) -> dict[str, Any]:
        return {"id": image_id, "file_name": file_name, "width": WIDTH, "height": HEIGHT}

    def load(self, **options: Any) -> CocoData:
        self.ann_file.write_text(json.dumps(self.content))
        return load_coco(self.ann_file, self.image_dir, **options)

    def error(self, **options: Any) -> str:
        with pytest.raises(TwinsError) as caught:
            self.load(**options)
        message = str(caught.value)
        assert "\n" not in message
        assert str(self.ann_file) in message
        return message


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def annotation_ids(data: CocoData) -> list[int]:
    return [entry["id"] for image in data.images for entry in image.annotations]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


class TestGoodData:
    def test_everything_is_kept_and_sorted(self, folder: Folder) -> None:
        data = folder.load()
        assert [image.id for image in data.images] == [2, 5, 9]
        assert [(image.width, image.height) for image in data.images] == [(WIDTH, HEIGHT)] * 3
        assert data.images[0].path == folder.image_dir / "two.jpg"
        assert annotation_ids(data) == [21, 22, 51, 52, 91, 92]
        assert data.images[1].annotations[0] == folder.content["annotations"][2]
        assert data.problems == ()
        assert data.ann_file == folder.ann_file

    def test_category_ids_with_gaps(self, folder: Folder) -> None:
        data = folder.load()
        assert data.category_ids == (3, 7)
        assert data.class_names == ("cat", "dog")

    def test_crowd_is_kept(self, folder: Folder) -> None:
        counts = [100, 50, WIDTH * HEIGHT - 150]
        crowd = annotation(1, 5, iscrowd=1, segmentation={"counts": counts, "size": [HEIGHT, WIDTH]})
        folder.content["annotations"].append(crowd)
        assert folder.load().images[1].annotations[-1] == crowd

    @pytest.mark.parametrize("segmentation", [None, [], {}])
    def test_box_only(self, folder: Folder, segmentation: Any) -> None:
        folder.content["annotations"][0]["segmentation"] = segmentation
        del folder.content["annotations"][1]["segmentation"]
        assert len(annotation_ids(folder.load())) == 6

    @pytest.mark.parametrize(
        "bbox", [[-4, -4, 5, 5], [WIDTH - 1, HEIGHT - 1, 90, 90], [-10, -10, 900, 900], [0, 0, 0.01, 0.01]]
    )
    def test_a_box_partly_outside_is_unchanged(self, folder: Folder, bbox: list[float]) -> None:
        folder.content["annotations"][3]["bbox"] = bbox
        assert folder.load().images[1].annotations[1]["bbox"] == bbox

    def test_an_image_without_annotations_is_kept(self, folder: Folder) -> None:
        folder.content["annotations"] = folder.content["annotations"][:2]
        assert [len(image.annotations) for image in folder.load().images] == [2, 0, 0]

    def test_no_annotations_at_all(self, folder: Folder) -> None:
        folder.content["annotations"] = []
        assert len(folder.load().images) == 3

    def test_indices_cuts_before_the_check(self, folder: Folder) -> None:
        (folder.image_dir / "nine.png").unlink()
        folder.content["annotations"][-1]["bbox"] = None
        data = folder.load(indices=2)
        assert [image.id for image in data.images] == [2, 5]
        assert annotation_ids(data) == [21, 22, 51, 52]
        assert "nine.png" in folder.error(indices=3)
        assert len(folder.load(indices=1).images) == 1

    @pytest.mark.parametrize("indices", [0, -1])
    def test_indices_has_to_be_positive(self, folder: Folder, indices: int) -> None:
        with pytest.raises(TwinsError, match=f"indices={indices}:"):
            folder.load(indices=indices)

    def test_data_behind_the_end_of_a_jpeg_is_harmless(self, folder: Folder) -> None:
        with (folder.image_dir / "two.jpg").open("ab") as file:
            file.write(b"\0" * 500)
        assert len(folder.load().images) == 3

    def test_other_formats(self, folder: Folder) -> None:
        path = folder.image_dir / "five.bmp"
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        folder.content["images"][2]["file_name"] = "five.bmp"
        assert folder.load().images[1].path == path
        cut(path)
        assert "five.bmp cannot be read" in folder.error()


class TestBadAnnotationFile:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match=r"^.*/none\.json: no such file; give an annotation file .*$"):
            load_coco(tmp_path / "none.json", tmp_path)

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match="is a folder"):
            load_coco(tmp_path, tmp_path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b'{"images": [],\n  "annotations": [1, 2', "line 2, column 23"),
            (b"", "line 1, column 1"),
            (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not JSON text"),
            (b"[1]", "holds a JSON list"),
            (b'{"annotations": [], "categories": []}', "has no 'images' (it has ['annotations', 'categories'])"),
            (b'{"images": [], "categories": []}', "has no 'annotations'"),
            (b'{"images": [], "annotations": []}', "has no 'categories'"),
            (b'{"images": {}, "annotations": [], "categories": []}', "'images' is a dict"),
            (b'{"images": [], "annotations": [17], "categories": []}', "annotations[0] is 17"),
            (b'{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
        ],
    )
    def test_content(self, tmp_path: Path, text: bytes, words: str) -> None:
        path = tmp_path / "bad.json"
        path.write_bytes(text)
        for skip_bad in (False, True):
            with pytest.raises(TwinsError) as caught:
                load_coco(path, tmp_path, skip_bad=skip_bad)
            message = str(caught.value)
            assert words in message and str(path) in message and "\n" not in message

    @pytest.mark.parametrize(
        ("key", "field", "value", "words"),
        [
            ("images", "id", "9", "images[0]: 'id' is '9'; it must be a whole number"),
            ("images", "width", 47.0, "images[0]: 'width' is 47.0"),
            ("images", "height", None, "images[0]: 'height' is None"),
            ("images", "file_name", 9, "images[0]: 'file_name' is 9; it must be a string"),
            ("categories", "id", True, "categories[0]: 'id' is True"),
            ("categories", "name", 7, "categories[0]: 'name' is 7"),
            ("images", "id", 5, "two of the images have the id 5"),
            ("categories", "id", 3, "two of the categories have the id 3"),
        ],
    )
    def test_entries(self, folder: Folder, key: str, field: str, value: Any, words: str) -> None:
        folder.content[key][0][field] = value
        assert words in folder.error()
        assert words in folder.error(skip_bad=True)

    def test_missing_field(self, folder: Folder) -> None:
        del folder.content["images"][1]["height"]
        assert "images[1]: 'height' is missing" in folder.error()

    def test_missing_image_dir(self, folder: Folder) -> None:
        folder.image_dir = folder.image_dir.with_name("elsewhere")
        assert f"{folder.image_dir}: no such folder" in folder.error(skip_bad=True)


def wider(path: Path) -> None:
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(path)


def taller(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(path)


def turned(path: Path) -> None:
    Image.new("RGB", (HEIGHT, WIDTH)).save(path)


def no_image(path: Path) -> None:
    path.write_text("<html>404</html>")


class TestBadImages:
    @pytest.mark.parametrize("file_name", ["two.jpg", "nine.png"])
    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (Path.unlink, "is missing"),
            (cut, "cannot be read ("),
            (no_image, "cannot be read ("),
            (turned, "is 31x47 pixels, but its entry says 47x31"),
            (wider, "is 48x31 pixels, but its entry says 47x31"),
            (taller, "is 47x32 pixels, but its entry says 47x31"),
        ],
    )
    def test_one_bad_image(self, folder: Folder, file_name: str, damage: Any, words: str) -> None:
        damage(folder.image_dir / file_name)
        message = folder.error()
        assert f"1 problem: image {folder.image_dir / file_name} {words}" in message
        assert "--skip-bad" in message
        data = folder.load(skip_bad=True)
        left = {"two.jpg": [51, 52, 91, 92], "nine.png": [21, 22, 51, 52]}[file_name]
        assert annotation_ids(data) == left
        assert [image.path.name for image in data.images] == [
            name for name in ("two.jpg", "five.jpg", "nine.png") if name != file_name
        ]
        assert len(data.problems) == 1 and file_name in data.problems[0]

    def test_a_cut_jpeg_keeps_its_header(self, folder: Folder) -> None:
        """The end of the file shows that it is truncated; its header still gives the right size."""
        cut(folder.image_dir / "two.jpg")
        with Image.open(folder.image_dir / "two.jpg") as image:
            assert image.size == (WIDTH, HEIGHT)
        with pytest.raises(TwinsError, match=r"two\.jpg: cannot be read"):
            read_image(folder.image_dir / "two.jpg")


COUNTS = [3, 9, WIDTH * HEIGHT - 12]


class TestBadAnnotations:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"bbox": None}, "bbox None is not a list of four finite numbers"),
            ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3] is not"),
            ({"bbox": [1, 2, "3", 4]}, "bbox [1, 2, '3', 4] is not"),
            ({"bbox": [1, 2, math.nan, 4]}, "bbox [1, 2, nan, 4] is not"),
            ({"bbox": [1, 2, math.inf, 4]}, "bbox [1, 2, inf, 4] is not"),
            ({"bbox": [1, 2, -3, 4]}, "bbox [1, 2, -3, 4] has no area"),
            ({"bbox": [1, 2, 1.03, 0.0]}, "bbox [1, 2, 1.03, 0.0] has no area"),
            ({"bbox": [47, 2, 3, 4]}, "bbox [47, 2, 3, 4] is outside its image of 47x31 pixels"),
            ({"bbox": [2, 31, 3, 4]}, "bbox [2, 31, 3, 4] is outside"),
            ({"bbox": [-3, 2, 3, 4]}, "bbox [-3, 2, 3, 4] is outside"),
            ({"bbox": [3, -4, 3, 4]}, "bbox [3, -4, 3, 4] is outside"),
            ({"category_id": 4}, "has an unknown category id 4"),
            ({"category_id": [3]}, "has an unknown category id [3]"),
            ({"category_id": None}, "has an unknown category id None"),
            ({"id": 21}, "has the id of an earlier annotation"),
            ({"id": "52"}, "has an id that is not a whole number"),
            ({"segmentation": [[1, 2, 3, 4]]}, "has a polygon of 4 numbers"),
            ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "has a polygon of 7 numbers"),
            ({"segmentation": [[1, 2, 3, 4, 5, 6], []]}, "has a polygon of 0 numbers"),
            ({"segmentation": [1, 2, 3, 4, 5, 6]}, "has the polygon 1, which"),
            ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "nan], which is not a list of finite numbers"),
            ({"segmentation": "full"}, "is 'full', neither polygons nor a run-length encoding"),
            ({"segmentation": {"counts": COUNTS}}, "neither polygons nor a run-length encoding"),
            ({"segmentation": {"counts": COUNTS, "size": [WIDTH, HEIGHT]}}, "has the size [47, 31], but its image has"),
            ({"segmentation": {"counts": [3, 9], "size": [HEIGHT, WIDTH]}}, "add up to 12, but its image has 1457"),
            ({"segmentation": {"counts": [1458, -1], "size": [HEIGHT, WIDTH]}}, "not run lengths: [1458, -1]"),
            ({"segmentation": {"counts": 5, "size": [HEIGHT, WIDTH]}}, "not run lengths: 5"),
            ({"segmentation": {"counts": "39", "size": [HEIGHT, WIDTH]}}, "add up to 12, but its image has 1457"),
            ({"segmentation": {"counts": "P", "size": [HEIGHT, WIDTH]}}, "not run lengths: 'P'"),
            ({"segmentation": {"counts": "3 9", "size": [HEIGHT, WIDTH]}}, "not run lengths: '3 9'"),
        ],
    )
    @pytest.mark.parametrize("iscrowd", [0, 1])
    def test_one_bad_annotation(self, folder: Folder, changes: dict[str, Any], words: str, iscrowd: int) -> None:
        folder.content["annotations"][3].update(changes, iscrowd=iscrowd)
        message = folder.error(strict=True)
        name = repr(changes.get("id", 52))
        assert f"1 problem: annotation {name} of image five.jpg" in message
        assert words in message
        assert "--skip-bad" in message
        data = folder.load(skip_bad=True)
        assert annotation_ids(data) == [21, 22, 51, 91, 92]
        assert len(data.problems) == 1 and words in data.problems[0]

    @pytest.mark.parametrize("image_id", [6, 5.0, "5", None])
    def test_unknown_image(self, folder: Folder, image_id: Any) -> None:
        folder.content["annotations"][3]["image_id"] = image_id
        assert f"annotation 52 has an unknown image id {image_id!r}" in folder.error()
        assert annotation_ids(folder.load(skip_bad=True)) == [21, 22, 51, 91, 92]

    def test_the_first_of_two_equal_ids_is_kept(self, folder: Folder) -> None:
        folder.content["annotations"].append(annotation(51, 9, area=99.0))
        data = folder.load(skip_bad=True)
        assert annotation_ids(data) == [21, 22, 51, 52, 91, 92]
        assert data.images[1].annotations[0]["area"] == 143.0

    def test_all_problems_are_counted(self, folder: Folder) -> None:
        folder.content["annotations"][0]["bbox"] = [0, 0, 0, 5]
        folder.content["annotations"][5]["category_id"] = 8
        (folder.image_dir / "five.jpg").unlink()
        message = folder.error(strict=True)
        assert f"3 problems, the first: image {folder.image_dir / 'five.jpg'} is missing" in message
        data = folder.load(skip_bad=True, strict=True)
        assert annotation_ids(data) == [22, 91]
        assert [words in line for words, line in zip(("five.jpg", "21", "92"), data.problems, strict=True)] == [
            True
        ] * 3

    @pytest.mark.parametrize("bbox", [[1, 2, 3, 0], [1, 2, 0.0, 3], [1, 2, 0, 0], [90, 2, 0, 3]])
    def test_a_box_of_zero_width_or_height_is_left_out(self, folder: Folder, bbox: list[float]) -> None:
        folder.content["annotations"][3].update(bbox=bbox, segmentation=[])
        data = folder.load()
        assert annotation_ids(data) == [21, 22, 51, 91, 92]
        assert data.problems == (f"annotation 52 of image five.jpg: bbox {bbox} has no area",)
        assert f"1 problem: {data.problems[0]}" in folder.error(strict=True)
        assert folder.load(skip_bad=True, strict=True) == data

    @pytest.mark.parametrize("bbox", [[1, 2, -3, 0], [1, 2, 0, math.nan], [1, 2, 0]])
    def test_a_box_with_another_problem_is_not_harmless(self, folder: Folder, bbox: list[float]) -> None:
        folder.content["annotations"][3]["bbox"] = bbox
        folder.content["annotations"][4]["bbox"] = [1, 2, 3, 0]
        assert "1 problem: annotation 52 " in folder.error()
        folder.content["annotations"][3].update(bbox=[1, 2, 0, 3], category_id=4)
        assert "1 problem: annotation 52 " in folder.error()

    def test_the_error_lists_all_problems(self, folder: Folder) -> None:
        for path in folder.image_dir.iterdir():
            path.unlink()
        with pytest.raises(DataError, match=r"3 problems, the first: image .*two\.jpg is missing") as caught:
            folder.load()
        assert [line.split("/")[-1] for line in caught.value.problems] == [
            f"{name} is missing" for name in ("two.jpg", "five.jpg", "nine.png")
        ]

    def test_names_with_line_breaks_stay_on_one_line(self, folder: Folder) -> None:
        folder.content["images"][0]["file_name"] = "ni\nne.png"
        folder.content["annotations"][0]["category_id"] = "a\nb"
        assert "ni ne.png is missing" in folder.error()
        assert all("\n" not in line for line in folder.load(skip_bad=True).problems)


class TestNothingLeft:
    def test_no_images(self, folder: Folder) -> None:
        for path in folder.image_dir.iterdir():
            path.unlink()
        assert "no images are left to use: 3 problems, the first: image" in folder.error(skip_bad=True)

    def test_no_annotations(self, folder: Folder) -> None:
        for entry in folder.content["annotations"]:
            entry["category_id"] = 1
        assert "no annotations are left to use: 6 problems" in folder.error(skip_bad=True)


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)
@pytest.mark.parametrize(("split", "num_images", "num_annotations"), [("train2017", 100, 890), ("val2017", 50, 399)])
def test_real_photos(split: str, num_images: int, num_annotations: int) -> None:
    data = load_coco(COCO_MINI / "annotations" / f"instances_{split}.json", COCO_MINI / split)
    assert len(data.images) == num_images
    assert len(annotation_ids(data)) == num_annotations
    assert len(data.category_ids) == 80 and data.category_ids[-1] == 90
    assert data.class_names[:2] == ("person", "bicycle")
    for image in data.images[:10]:
        assert read_image(image.path).shape == (image.height, image.width, 3)
        for entry in image.annotations:
            # COCO stores the area of the polygons, which differs from that of the masks along the outline.
            area = decode_segmentation(entry["segmentation"], image.height, image.width).sum()
            assert area == pytest.approx(entry["area"], rel=0.25, abs=30)
