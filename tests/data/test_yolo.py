"""YOLO data: the paths that descriptions name, the lines of label files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twins_dense.data.coco import load_coco
from twins_dense.data.layouts import DataFolder, recognise
from twins_dense.data.problems import DataError
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 200, 100
BOX = "1 0.5 0.5 0.1 0.2\n"


class Folder:
    """A data set of four images with one box each, in which tests change files."""

    def __init__(self, root: Path, images: str = "images/train", labels: str = "labels/train") -> None:
        self.root, self.out = root / "data", root / "out"
        self.images, self.labels = self.root / images, self.root / labels
        self.images.mkdir(parents=True)
        self.labels.mkdir(parents=True, exist_ok=True)
        for name in "abcd":
            Image.new("RGB", (WIDTH, HEIGHT)).save(self.images / f"{name}.png")
            (self.labels / f"{name}.txt").write_text(BOX)
        self.describe(f"train: {images}\nnames: [cat, dog]\n")

    def describe(self, text: str, name: str = "data.yaml") -> None:
        (self.root / name).write_text(text)

    def read(self, **options: Any) -> DataFolder:
        return recognise(self.root, out=self.out, **options)

    def annotations(self, name: str = "a") -> list[dict[str, Any]]:
        """Return the annotations of one image."""
        for split in self.read().splits.values():
            assert split.ann_file is not None
            for image in load_coco(split.ann_file, split.image_dir, refuse_rotated=False).images:
                if image.path.stem == name:
                    return list(image.annotations)
        raise AssertionError(name)

    def error(self, **options: Any) -> str:
        with pytest.raises(TwinsError) as caught:
            self.read(**options)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestLines:
    def test_box(self, folder: Folder) -> None:
        (annotation,) = folder.annotations()
        assert annotation["bbox"] == [90, 40, 20, 20]
        assert (annotation["category_id"], annotation["segmentation"], annotation["area"]) == (2, [], 400)

    def test_polygon(self, folder: Folder) -> None:
        (folder.labels / "a.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6\n")
        (annotation,) = folder.annotations()
        assert annotation["segmentation"] == [[20, 20, 100, 20, 100, 60]]
        assert (annotation["bbox"], annotation["area"], annotation["category_id"]) == ([20, 20, 80, 40], 1600, 1)

    def test_coordinates_are_clipped(self, folder: Folder) -> None:
        (folder.labels / "a.txt").write_text("0 0.05 0.95 0.2 0.2\n0 -0.005 0 1.005 0 1.005 1\n")
        box, polygon = folder.annotations()
        assert box["bbox"] == [0, 85, 30, 15]
        assert polygon["segmentation"] == [[0, 0, 200, 0, 200, 100]]

    def test_blank_lines_duplicates_and_missing_files(self, folder: Folder) -> None:
        (folder.labels / "a.txt").write_text(f"\ufeff\n{BOX}\n{BOX}")
        (folder.labels / "b.txt").write_text("")
        (folder.labels / "c.txt").unlink()
        assert len(folder.annotations()) == 1 and folder.annotations("b") == folder.annotations("c") == []
        assert "1 of 4 images have no label file, and count as images without objects." in folder.read().notes

    def test_boxes_and_polygons_mixed(self, folder: Folder) -> None:
        (folder.labels / "a.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6\n")
        data = folder.read()
        assert not data.has_masks
        assert "3 of 4 objects have a box only, so that masks cannot be trained." in data.notes

    def test_keypoints_are_ignored(self, folder: Folder) -> None:
        folder.describe("train: images/train\nnames: [cat, dog]\nkpt_shape: [2, 3]\n")
        for path in folder.labels.iterdir():
            path.write_text(BOX.strip() + " 0.1 0.1 2 0.2 0.2 2\n")
        assert folder.annotations()[0]["bbox"] == [90, 40, 20, 20]
        assert "Keypoints are ignored." in folder.read().notes

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_rotated_images(self, folder: Folder, orientation: int) -> None:
        """Labels refer to the upright image; our data refers to the stored pixels."""
        stored = Image.new("L", (WIDTH, HEIGHT))
        stored.paste(255, (20, 10, 60, 30))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(folder.images / "a.png", exif=exif)
        turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # of Image.Transpose
        upright = stored.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else stored
        x1, y1, x2, y2 = upright.getbbox() or ()
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        line = f"0 {x / upright.width} {y / upright.height} {w / upright.width} {h / upright.height}\n"
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        polygon = " ".join(f"{x / upright.width} {y / upright.height}" for x, y in corners)
        (folder.labels / "a.txt").write_text(f"{line}1 {polygon}\n")
        assert [annotation["bbox"] for annotation in folder.annotations()] == [[20, 10, 40, 20]] * 2

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("1 0.5 0.5 0.1", "has 4 numbers; a box has 5"),
            ("1 0.5 0.5 0.1 0.2 0.9", "has 6 numbers; a box has 5"),
            ("1 0.5 0.5 0.1 0.2 0.9 0.1 0.3", "has 8 numbers; a box has 5"),
            ("1", "has 1 number; a box has 5"),
            ("dog 0.5 0.5 0.1 0.2", "'dog 0.5 0.5 0.1 0.2' contains something that is not a number"),
            ("1 nan 0.5 0.1 0.2", "contains a number that is not finite"),
            ("1 0.5 inf 0.1 0.2", "contains a number that is not finite"),
            ("2 0.5 0.5 0.1 0.2", "class 2 is not one of 0 to 1"),
            ("-1 0.5 0.5 0.1 0.2", "class -1 is not one of 0 to 1"),
            ("0.5 0.5 0.5 0.1 0.2", "class 0.5 is not one of 0 to 1"),
            ("1 90 40 20 20", "90 is not between 0 and 1; coordinates must be fractions of the image size"),
            ("1 0.5 0.5 -0.1 0.2", "-0.1 is not between 0 and 1"),
        ],
    )
    def test_malformed(self, folder: Folder, line: str, words: str) -> None:
        (folder.labels / "b.txt").write_text(f"{BOX}{line}\n")
        message = folder.error()
        assert f"1 problem: {folder.labels / 'b.txt'}, line 2: " in message
        assert words in message and "--skip-bad" in message
        data = folder.read(skip_bad=True)
        assert len(data.problems) == 1 and words in data.problems[0]
        assert data.splits["train"].num_images + data.splits["val"].num_images == 4

    def test_all_problems_are_listed(self, folder: Folder) -> None:
        for name in "abc":
            (folder.labels / f"{name}.txt").write_text("5 0.5 0.5 0.1 0.2\n7 0.5 0.5 0.1 0.2\n")
        (folder.images / "d.png").write_text("<html>404</html>")
        with pytest.raises(DataError, match=r"7 problems, the first: .*a\.txt, line 1: class 5 is not one") as caught:
            folder.read()
        assert len(caught.value.problems) == 7 and "d.png cannot be read" in caught.value.problems[-1]

    def test_not_text(self, folder: Folder) -> None:
        (folder.labels / "b.txt").write_bytes(b"\xff\xfe\x00\x81")
        assert f"1 problem: {folder.labels / 'b.txt'} cannot be read" in folder.error()


class TestDescriptions:
    @pytest.mark.parametrize(
        "names", ["[cat, dog]", "{0: cat, 1: dog}", "{1: dog, 0: cat}", "\n- cat\n- dog", "\n  '0': cat\n  '1': dog"]
    )
    def test_names(self, folder: Folder, names: str) -> None:
        folder.describe(f"train: images/train\nnc: 2\nnames: {names}\n")
        assert folder.read().classes == ("cat", "dog")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("names: {0: cat, 2: dog}", "names has the keys [0, 2]; number them from 0"),
            ("names: cat", "names is 'cat'; list the names"),
            ("names: []", "names is []; list the names"),
            ("nc: 2", "names is None; list the names"),
            ("nc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names"),
            ("names: [cat, dog", "is not valid YAML"),
            ("names: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ],
    )
    def test_bad_names(self, folder: Folder, text: str, words: str) -> None:
        folder.describe(f"train: images/train\n{text}\n")
        message = folder.error()
        assert words in message and str(folder.root / "data.yaml") in message

    @pytest.mark.parametrize(
        "text",
        [
            "path: .\ntrain: images/train",
            "path: ../datasets/somewhere\ntrain: images/train",
            "path: /content/datasets/elsewhere\ntrain: images/train",
            "path: images\ntrain: train",
            "train: ../images/train",
            "train: ./images/train/",
            "train: [images/train]",
            "train: /content/data/images/train",
            "train: list.txt",
            "train: images/train\ntest: images/test",
            "nc: 2",
        ],
    )
    def test_paths(self, folder: Folder, text: str) -> None:
        folder.describe(f"{text}\nnames: [cat, dog]\n")
        (folder.root / "list.txt").write_text("".join(f"./images/train/{name}.png\n" for name in "abcd"))
        data = folder.read()
        assert [split.num_images for split in data.splits.values()] == [3, 1]
        assert data.splits["train"].image_dir == folder.root

    def test_absolute_paths_outside(self, folder: Folder, tmp_path: Path) -> None:
        (tmp_path / "description").mkdir()
        (tmp_path / "description/data.yaml").write_text(
            f"path: {folder.root}\ntrain: images/train\nnames: [cat, dog]\n"
        )
        data = recognise(tmp_path / "description", out=tmp_path / "out")
        assert data.splits["train"].image_dir == folder.images

    def test_roboflow(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path, "train/images", "train/labels")
        valid = folder.root / "valid"
        for kind, source in (("images", folder.images), ("labels", folder.labels)):
            (valid / kind).mkdir(parents=True)
            for path in sorted(source.iterdir())[:2]:
                path.rename(valid / kind / path.name)
        folder.describe("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
        splits = folder.read().splits
        assert [split.num_images for split in splits.values()] == [2, 2]

    @pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
    def test_classes_without_a_description(self, folder: Folder, place: str) -> None:
        (folder.root / "data.yaml").unlink()
        folder.describe("cat\ndog\n", place)
        data = folder.read()
        assert (data.layout, data.classes) == ("YOLO", ("cat", "dog"))

    def test_labels_beside_the_images(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path, "photos", "photos")
        assert folder.annotations()[0]["bbox"] == [90, 40, 20, 20]

    def test_missing_places(self, folder: Folder) -> None:
        folder.describe("train: images/training\nnames: [cat, dog]\n")
        assert "train: 'images/training' is neither in" in folder.error()

    def test_no_images(self, folder: Folder) -> None:
        for path in folder.images.iterdir():
            path.unlink()
        assert "no images are found" in folder.error()

    def test_no_labels(self, folder: Folder) -> None:
        for path in folder.labels.iterdir():
            path.unlink()
        assert f"no label files: looked for {folder.labels / 'a.txt'} and 3 others" in folder.error()

    def test_two_descriptions(self, folder: Folder) -> None:
        (folder.root / "data.yaml").unlink()
        for name in ("coco8.yaml", "coco9.yml"):
            folder.describe("train: images/train\nnames: [cat, dog]\n", name)
        assert "which of coco8.yaml, coco9.yml describes the data?" in folder.error()


def test_other_yaml_files_are_not_descriptions(tmp_path: Path) -> None:
    for path in ("hyperparameters.yaml", "data.yaml"):
        (tmp_path / path).write_text("lr: 0.1\n")
    with pytest.raises(TwinsError, match="is not recognised"):
        recognise(tmp_path, out=tmp_path / "out")
