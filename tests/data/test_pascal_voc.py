"""Pascal VOC data: coordinates, splits, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twins_dense.data.layouts import DataFolder, recognise
from twins_dense.data.problems import DataError
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 60, 40


def object_xml(name: str = "dog", box: tuple[Any, ...] = (11, 6, 20, 15), extra: str = "") -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>\n"


class Folder:
    """A data set of four images with one object each, in which tests change files."""

    def __init__(self, root: Path, annotations: str = "Annotations", images: str = "JPEGImages") -> None:
        self.root, self.out = root / "VOC2007", root / "out"
        self.annotations, self.images = self.root / annotations, self.root / images
        for folder in (self.annotations, self.images):
            folder.mkdir(parents=True, exist_ok=True)
        for name in "abcd":
            Image.new("RGB", (WIDTH, HEIGHT)).save(self.images / f"{name}.jpg")
            self.write(name, object_xml())

    def write(self, name: str, objects: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
        text = f"<annotation>\n<filename>wrong name.jpg</filename>\n{sides}{objects}</annotation>\n"
        (self.annotations / f"{name}.xml").write_text(text)

    def lists(self, **names: str) -> None:
        folder = self.root / "ImageSets/Main"
        folder.mkdir(parents=True, exist_ok=True)
        for split, letters in names.items():
            (folder / f"{split}.txt").write_text("".join(f"{letter}\n" for letter in letters))

    def read(self, **options: Any) -> DataFolder:
        return recognise(self.root, out=self.out, **options)

    def content(self, split: str = "train") -> dict[str, Any]:
        ann_file = self.read().splits[split].ann_file
        assert ann_file is not None
        return json.loads(ann_file.read_text())

    def error(self) -> str:
        with pytest.raises(TwinsError) as caught:
            self.read()
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestObjects:
    @pytest.mark.parametrize(
        ("corners", "box"),
        [
            ((11, 6, 20, 15), [10, 5, 10, 10]),
            ((1, 1, WIDTH, HEIGHT), [0, 0, WIDTH, HEIGHT]),
            ((7, 8, 7, 8), [6, 7, 1, 1]),
            ((0, 0, 5, 5), [0, 0, 5, 5]),
            ((51, 31, 70, 50), [50, 30, 10, 10]),
            (("11.5", "6.25", "20.0", "15.75"), [10.5, 5.25, 9.5, 10.5]),
        ],
    )
    def test_the_first_pixel_is_1_and_the_last_one_belongs_to_the_box(
        self, folder: Folder, corners: tuple[Any, ...], box: list[float]
    ) -> None:
        for name in "abcd":
            folder.write(name, object_xml(box=corners))
        assert folder.content()["annotations"][0]["bbox"] == box

    def test_classes_are_sorted(self, folder: Folder) -> None:
        folder.write("a", object_xml("  zebra "))
        folder.write("b", object_xml("cat"))
        assert folder.read().classes == ("cat", "dog", "zebra")

    def test_parts_are_not_objects(self, folder: Folder) -> None:
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        for name in "abcd":
            folder.write(name, object_xml(extra=part))
        assert folder.read().classes == ("dog",)
        assert folder.content()["annotations"][0]["bbox"] == [10, 5, 10, 10]

    def test_difficult_objects_are_ignored_by_the_evaluation_only(self, folder: Folder) -> None:
        for name in "abcd":
            folder.write(name, object_xml() + object_xml(extra="<difficult>1</difficult>"))
        assert [entry["iscrowd"] for entry in folder.content("train")["annotations"]] == [0] * 6
        assert [entry["iscrowd"] for entry in folder.content("val")["annotations"]] == [0, 1]
        assert "4 objects are difficult: trained on, and ignored by the evaluation." in folder.read().notes

    def test_an_image_without_objects_is_kept(self, folder: Folder) -> None:
        for name in "abc":
            folder.write(name, "")
        data = folder.read()
        assert sum(split.num_images for split in data.splits.values()) == 4

    def test_an_unknown_size_is_read_from_the_image(self, folder: Folder) -> None:
        folder.write("a", object_xml(), size=(0, 0))
        assert {(image["width"], image["height"]) for image in folder.content()["images"]} == {(WIDTH, HEIGHT)}


class TestSplits:
    def test_lists(self, folder: Folder) -> None:
        folder.lists(train="ab", val="c", test="d", trainval="abc", dog_train="a")
        data = folder.read()
        assert {name: split.num_images for name, split in data.splits.items()} == {"train": 2, "val": 1, "test": 1}

    def test_trainval_and_a_test_list_without_annotations(self, folder: Folder) -> None:
        folder.lists(trainval="abcd", test="xyz")
        data = folder.read()
        assert {name: split.num_images for name, split in data.splits.items()} == {"train": 3, "val": 1}
        assert data.notes[0] == "test is ignored: no image of test.txt has an annotation."

    def test_without_lists(self, folder: Folder) -> None:
        assert [split.num_images for split in folder.read().splits.values()] == [3, 1]

    @pytest.mark.parametrize("folders", [("annotations", "images"), ("Annotations", "Annotations"), ("train", "train")])
    def test_other_folders(self, tmp_path: Path, folders: tuple[str, str]) -> None:
        data = Folder(tmp_path, *folders).read()
        assert (data.layout, [split.num_images for split in data.splits.values()]) == ("Pascal VOC", [3, 1])

    def test_images_without_an_annotation_are_noted(self, folder: Folder) -> None:
        (folder.annotations / "d.xml").unlink()
        data = folder.read()
        assert sum(split.num_images for split in data.splits.values()) == 3
        assert data.notes[0] == "Images of JPEGImages without an XML file are left out: 1."

    def test_devkit(self, folder: Folder) -> None:
        folder.lists(train="ab", val="cd")
        assert recognise(folder.root.parent, out=folder.out).root == folder.root


class TestProblems:
    @pytest.mark.parametrize(
        ("objects", "words"),
        [
            (object_xml(box=("a", 6, 20, 15)), "line 4: bndbox/xmin is 'a'; it must be a number"),
            (object_xml(box=(11, "nan", 20, 15)), "line 4: bndbox/ymin is 'nan'"),
            (object_xml(box=(11, 6, "", 15)), "line 4: bndbox/xmax is ''"),
            (object_xml() + object_xml(box=(21, 6, 20, 15)), "line 5: object 'dog' has xmax < xmin or ymax < ymin"),
            (object_xml(box=(61, 6, 70, 15)), "line 4: object 'dog' is outside its image of 60x40 pixels"),
            (object_xml(name=" "), "line 4: object without a name"),
            ("<object><name>dog</name></object>", "line 4: object 'dog' has no bndbox"),
            ("<object><name>dog", "is not valid XML (mismatched tag: line 4"),
        ],
    )
    def test_malformed(self, folder: Folder, objects: str, words: str) -> None:
        folder.write("b", objects)
        message = folder.error()
        assert f"1 problem: {folder.annotations / 'b.xml'}" in message and words in message
        assert len(folder.read(skip_bad=True).problems) == 1

    def test_another_size(self, folder: Folder) -> None:
        folder.write("b", object_xml(), size=(HEIGHT, WIDTH))
        words = "b.xml, line 3: size is 40x60, but the image has 60x40 pixels; remove its EXIF orientation if"
        assert words in folder.error()

    def test_a_size_that_is_not_a_number(self, folder: Folder) -> None:
        path = folder.annotations / "b.xml"
        path.write_text(path.read_text().replace("<width>60", "<width>many"))
        assert "b.xml, line 3: size/width is 'many'" in folder.error()

    def test_a_document_type_is_refused(self, folder: Folder) -> None:
        """Nested entities would expand to gigabytes, and external ones would read other files."""
        laughs = '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">'
        for encoding in ("utf-8", "utf-16"):
            text = f'<?xml version="1.0"?><!DOCTYPE annotation [{laughs}]><annotation>&b;</annotation>'
            (folder.annotations / "b.xml").write_bytes(text.encode(encoding))
            assert "b.xml: has a document type declaration (DOCTYPE); remove it" in folder.error()

    def test_missing_files_are_listed(self, folder: Folder) -> None:
        folder.lists(train="abx", val="cd")
        (folder.images / "a.jpg").unlink()
        with pytest.raises(DataError, match=r"2 problems, the first: image .*a\.jpg cannot be read") as caught:
            folder.read()
        assert "x.jpg" in caught.value.problems[1]

    def test_no_objects(self, folder: Folder) -> None:
        for name in "abcd":
            folder.write(name, "")
        assert "the XML files contain no objects" in folder.error()
