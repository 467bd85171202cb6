"""The report of a data set names each planted problem with the right count, whatever the data looks like."""

from __future__ import annotations

import html
import io
import json
import random
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_fixtures import Browser
from detection_fixtures import NO_PHOTOS
from picture_fixtures import picture
from PIL import Image
from report_fixtures import HOSTILE_NAMES
from segmentation_fixtures import PHOTOS

from twins_dense.data.layouts import recognise
from twins_dense.data.suspects import KINDS
from twins_dense.errors import TwinsError
from twins_dense.evaluation.data_survey import spread_examples, survey_labels, survey_objects
from twins_dense.evaluation.report.data import data_page, write_data_report

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 160, 120
BOX: Box = (20, 20, 30, 40)


class Sections(HTMLParser):
    """The text of each section of a page by its identifier, and of the headlines as "headlines"; lines are items."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"": []}
        self.current, self.hidden = "", 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section" or values.get("class") == "headlines":
            self.current = values.get("id") or "headlines"
            self.texts[self.current] = []
        self.hidden += tag in ("style", "script")
        if tag in ("p", "li", "tr", "h2", "h3", "td", "th", "div"):
            self.texts[self.current].append("")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden and data.strip():
            lines = self.texts[self.current]
            lines[-1:] = [(lines[-1] if lines else "") + data]

    def findings(self) -> list[str]:
        """Return the sentences about what to look at."""
        return [line.strip().removesuffix(" Show") for line in self.texts["overview"] if line.strip().endswith(" Show")]

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.texts[section]).split())


def write_coco(
    root: Path,
    splits: dict[str, Sequence[tuple[str, Image.Image, Sequence[tuple[int, Box]]]]],
    classes: Sequence[str] = ("cat", "dog"),
    *,
    with_masks: bool = False,
    shuffle: int | None = None,
) -> Path:
    """Write a data set in COCO's layout: for each split, the file name, the picture and the objects of each image.

    `shuffle` is the seed of another order of the entries in the annotation files; ids stay the same.
    """
    (root / "annotations").mkdir(parents=True)
    for split, images in splits.items():
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
        }
        for image_id, (name, image, objects) in enumerate(images):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / split / name)
            size = {"width": image.width, "height": image.height}
            content["images"].append({"id": image_id, "file_name": name, **size})
            for category, (x, y, w, h) in objects:
                entry: dict[str, Any] = {"id": len(content["annotations"]), "image_id": image_id}
                entry |= {"category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                if with_masks:
                    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                content["annotations"].append(entry)
        if shuffle is not None:
            random.Random(shuffle).shuffle(content["images"])
            random.Random(shuffle).shuffle(content["annotations"])
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def small(seed: int) -> Image.Image:
    return picture(seed, WIDTH, HEIGHT)


def compressed(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=40)
    return Image.open(content).convert("RGB")


def report(root: Path) -> Sections:
    return Sections(write_data_report(root, root.parent / f"{root.name}.html").read_text(encoding="utf-8"))


def planted(root: Path, **options: Any) -> Path:
    """Write a data set with one or two of each problem, among ten ordinary training images."""
    train: list[tuple[str, Image.Image, list[tuple[int, Box]]]] = [
        (f"{seed}.png", small(seed), [(0, BOX), (1, (90, 50, 20, 20))]) for seed in range(10)
    ]
    train.append(("copy.png", small(0), [(0, BOX)]))  # the same file as 0.png
    train.append(("empty.png", small(20), []))
    kinds: dict[str, Sequence[tuple[int, Box]]] = {
        "outside": [(0, (-2, 20, 30, 20))],
        "tiny": [(0, (20, 20, 1.5, 20)), (0, (60, 60, 3, 4))],
        "enormous": [(0, (0, 0, WIDTH, HEIGHT))],
        "thin": [(0, (10, 10, 105, 5))],
        "annotated twice": [(0, BOX), (0, BOX)],
        "two classes": [(0, BOX), (1, BOX)],
    }
    train += [(f"{kind}.png", small(30 + index), list(found)) for index, (kind, found) in enumerate(kinds.items())]
    val: list[tuple[str, Image.Image, list[tuple[int, Box]]]] = [
        ("leak.jpg", compressed(small(1)), [(0, BOX)]),
        ("new.png", small(40), [(2, BOX)]),
        ("other.png", small(41), [(0, BOX)]),
    ]
    return write_coco(root, {"train": train, "val": val}, ("cat", "dog", "only in val"), **options)


class TestPlantedProblems:
    def test_each_is_named_with_its_count(self, tmp_path: Path) -> None:
        found = report(planted(tmp_path / "planted"))
        assert found.findings() == [
            "1 of 3 images of val shows the same as images of train: scores will look better than they are.",
            "1 image of train repeats another one.",
            "1 class has objects only in val: only in val.",
            "1 class has no objects in val, so that no score says how well it is found: dog.",
            "1 pair of identical images has different annotations.",
            "7 annotations may be wrong: 1 outside, 2 tiny, 1 enormous, 1 thin, 1 annotated twice, 1 two classes.",
            "1 of 18 images of train has no objects.",
        ]
        assert "leaked images 1" in found.text("headlines") and "suspicious annotations 7" in found.text("headlines")
        duplicates = found.text("duplicates")
        assert "between splits nearly the same picture 1" in duplicates
        assert "within a split the same file 1" in duplicates
        assert (
            "Leak between train and val: nearly the same picture train/1.png2 objects val/leak.jpg1 object"
            in duplicates
        )
        assert "train/0.png2 objects train/copy.png1 object" in duplicates
        assert "train/empty.png" in found.text("empty") and "1 image" in found.text("empty")
        for kind, count in zip(KINDS, (1, 2, 1, 1, 1, 1, 0, 0), strict=True):
            assert f"{kind} {count} {KINDS[kind]}" in found.text("suspects"), kind
        assert "train/tiny.png train 22 cat tiny 1.5x20 pixels" in found.text("suspects")
        assert "Every image and every annotation can be used." in found.text("problems")
        assert "--recipe small-data" in found.text("settings")

    def test_problems_are_listed_and_the_rest_is_reported(self, tmp_path: Path) -> None:
        root = planted(tmp_path / "planted")
        (root / "train/3.png").write_bytes(b"no image")
        file = root / "annotations/instances_val.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [500, 10, 20, 20]
        file.write_text(json.dumps(content))
        found = report(root)
        assert found.findings()[:2] == [
            "1 problem of train: images or annotations cannot be used.",
            "1 problem of val: images or annotations cannot be used.",
        ]
        problems = found.text("problems")
        assert "train/3.png cannot be read" in problems and "is outside its image of 160x120 pixels" in problems
        assert "images 20 17 train + 3 val." in found.text("headlines")

    def test_the_order_of_entries_does_not_matter(self, tmp_path: Path) -> None:
        pages = [
            data_page(recognise(planted(tmp_path / str(seed) / "data", shuffle=seed), out=tmp_path / "out"))
            for seed in (None, 1, 2)
        ]
        first, *others = (page.replace(f"/{seed}/", "/") for page, seed in zip(pages, (None, 1, 2), strict=True))
        assert first == others[0] == others[1]


class TestAnyData:
    def test_hostile_names(self, tmp_path: Path) -> None:
        names = HOSTILE_NAMES
        file_name = "<b onclick=alert(1)>'&\"{{ 7 * 7 }}🦜.png"
        images = [(file_name, small(0), [(i, BOX) for i in range(3)]), ("b.png", small(0), [(0, (0, 0, 160, 120))])]
        page = data_page(
            recognise(write_coco(tmp_path / "a<i>b", {"train": images, "val": images}, names), out=tmp_path)
        )
        found = Sections(page)
        for text in (*names, file_name):
            assert text in found.text("classes") or text in " ".join(found.texts["duplicates"]), text
        assert "Data set a<i>b" in html.unescape(page)
        assert not re.search(r"<b onclick|<img src=x|<script>alert|<i>b", page)

    @pytest.mark.parametrize("num_classes", [1, 300])
    def test_numbers_of_classes(self, tmp_path: Path, num_classes: int) -> None:
        classes = [f"class {i}" for i in range(num_classes)]
        train = [
            (f"{n}.png", small(n), [((num_classes * n + k) // 10 % num_classes, BOX) for k in range(num_classes)])
            for n in range(10)
        ]
        root = write_coco(tmp_path / "data", {"train": train, "val": train[:1]}, classes)
        found = report(root)
        rows = [line for line in found.texts["classes"] if line.strip() in classes]
        assert len(rows) == num_classes
        assert ("300 rows" in found.text("classes")) is (num_classes == 300)

    def test_no_annotation_and_one_image_in_each_split(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path / "data", {"train": [("a.png", small(0), [])], "val": [("b.png", small(1), [])]})
        found = report(root)
        assert found.findings() == [
            "The training images have no objects of any class.",
            "1 of 1 image of train has no objects.",
            "1 of 1 image of val has no objects.",
        ]
        assert "sizes" not in found.texts and "No image has an object." in found.text("examples")
        assert "No annotation is suspicious" in found.text("suspects")
        assert "There are no settings to suggest" in found.text("settings")
        assert "No image occurs twice" in found.text("duplicates")

    def test_one_image(self, tmp_path: Path) -> None:
        image = [("a.png", small(0), [(0, BOX)])]
        found = report(write_coco(tmp_path / "data", {"train": image, "val": image}, with_masks=True))
        assert "1 of 1 image of val shows the same as images of train" in found.findings()[0]
        assert not any("different annotations" in text for text in found.findings())
        assert "All images have 160 × 120 pixels." in found.text("images")

    def test_limits_are_stated(self, tmp_path: Path) -> None:
        train = [(f"{n}.png", small(n % 3), [(0, (10 + k, 10, 1, 1)) for k in range(10)]) for n in range(30)]
        root = write_coco(tmp_path / "data", {"train": train, "val": train[:1]})
        found = report(root)
        assert "The first 50 of 310 annotations are shown." in found.text("suspects")
        assert re.search(r"The first 20 of \d+ pairs are shown.", found.text("duplicates"))
        assert "of 31 images are shown." in found.text("examples")

    def test_objects_without_masks(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path / "data", {s: [(f"{s}.png", small(1), [(0, BOX)])] for s in ("train", "val")})
        file = root / "annotations/instances_val.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["segmentation"] = [[20, 20, 50, 20, 50, 60]]
        file.write_text(json.dumps(content))
        assert any("1 of 2 objects has a box but no mask" in text for text in report(root).findings())

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match="is not a folder"):
            write_data_report(tmp_path / "none", tmp_path / "a.html")
        with pytest.raises(TwinsError, match="not recognised"):
            write_data_report(tmp_path, tmp_path / "a.html")
        (tmp_path / "notes.html").write_text("mine")
        with pytest.raises(TwinsError, match="is not a report"):
            write_data_report(tmp_path, tmp_path / "notes.html")

    def test_another_layout(self, tmp_path: Path) -> None:
        """Bad lines of YOLO files are listed, and the other objects are reported."""
        root = tmp_path / "yolo"
        for split, seed in (("train", 0), ("val", 1)):
            for folder in ("images", "labels"):
                (root / folder / split).mkdir(parents=True)
            small(seed).save(root / f"images/{split}/{split}.png")
            (root / f"labels/{split}/{split}.txt").write_text("0 0.5 0.5 0.2 0.3\n" + "1 0.5\n" * (split == "train"))
        (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
        found = report(root)
        assert "objects 2 1 train + 1 val." in found.text("headlines")
        assert "labels/train/train.txt" in found.text("problems")


def write_labels(root: Path, splits: dict[str, Sequence[np.ndarray]], classes: Sequence[str]) -> Path:
    """Write a data set of label maps in ADE20K's layout, with a different picture for each."""
    seed = 0
    for split, label_maps in splits.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index, label_map in enumerate(label_maps):
            small(seed).save(root / f"images/{split}/{index}.png")
            Image.fromarray(label_map).save(root / f"annotations/{split}/{index}.png")
            seed += 1
    (root / "classes.json").write_text(json.dumps(dict(enumerate(classes, 1))))
    return root


class TestLabelMaps:
    def test_known_answers(self, tmp_path: Path) -> None:
        ignored, half, both = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(3))
        half[:60], both[:60], both[60:] = 1, 1, 2
        rare = both.copy()
        rare[:12] = 3
        both[0] = 255
        root = write_labels(
            tmp_path / "maps",
            {"training": [half, both, half, half, ignored], "validation": [rare]},
            ("<sky>", "sea", "boat"),
        )
        shutil.copy(root / "images/training/0.png", root / "images/validation/0.png")
        found = report(root)
        assert found.findings() == [
            "1 of 1 image of val shows the same as images of train: scores will look better than they are.",
            "1 class has images only in val: boat.",
            "2 classes have fewer than 5 training images: <sky>, sea.",
            "1 of 5 label maps of train has no pixel with a class.",
        ]
        # Training: 3 × 60 rows of 1, and 59 + 60 rows, of 600 rows.
        assert "train 5 5 2 1 49.8" in found.text("overview")
        survey = survey_labels(recognise(root, out=tmp_path / "out"))
        assert survey.class_pixels("train").sum(axis=0).tolist() == [239 * WIDTH, 60 * WIDTH, 0]
        assert "<sky> 1 79.9 4 80.0" in found.text("classes")
        assert "255 train 0.2 1 20.0" in found.text("values") and "0 train 50.0 4 80.0" in found.text("values")
        assert "images/training/4.png no class" in found.text("empty")
        assert "images/training/0.png" in found.text("duplicates")
        assert "--size 96" in found.text("settings")

    def test_problems(self, tmp_path: Path) -> None:
        ordinary = np.ones((HEIGHT, WIDTH), np.uint8)
        root = write_labels(tmp_path / "maps", {"training": [ordinary] * 3, "validation": [ordinary]}, ("a", "b"))
        Image.fromarray(ordinary[:50]).save(root / "annotations/training/1.png")
        (root / "images/training/2.png").write_bytes(b"no image")
        found = report(root)
        assert found.findings()[0] == "2 problems of train: images or annotations cannot be used."
        assert "label whose size differs" in found.text("problems") and "cannot be read" in found.text("problems")
        Image.fromarray(ordinary[:50]).save(root / "annotations/validation/0.png")
        with pytest.raises(TwinsError, match="no image is left"):
            report(root)


class TestExamples:
    def test_every_class_is_shown_first(self) -> None:
        present = np.zeros((100, 5), bool)
        present[:, 0] = True
        present[[7, 50], 1] = present[99, 2] = present[50, 3] = True
        chosen = spread_examples(present, 4)
        assert present[chosen].any(axis=0).tolist() == [True, True, True, True, False] and len(chosen) <= 4
        assert len(spread_examples(present, 30)) == 30

    def test_few_images(self) -> None:
        assert spread_examples(np.ones((1, 1), bool), 9) == [0]
        assert spread_examples(np.zeros((3, 2), bool), 9) == []


@pytest.mark.parametrize("name", ["coco_mini", "nuclei_mini", "camvid_mini"])
def test_real_data(tmp_path: Path, name: str) -> None:
    """Real data sets without leaks; the only duplicates are frames of a video that follow each other."""
    if not (PHOTOS / name).is_dir():
        pytest.skip(NO_PHOTOS)
    folder = recognise(PHOTOS / name, out=tmp_path)
    survey = survey_objects(folder) if folder.task == "detection" else survey_labels(folder)
    assert not any(pair.is_leak for pair in survey.duplicates)
    assert len(survey.duplicates) == {"camvid_mini": 3}.get(name, 0)
    assert not any(survey.problems.values())


@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser(tmp_path: Path, browser: Browser, width: int) -> None:
    path = write_data_report(planted(tmp_path / "planted"), tmp_path / "data.html")
    browser.open(path, width=width)
    assert browser.messages() == [] and browser.requests() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.click("#class-table th:nth-child(5) button")
    order = browser.texts("#class-table tbody th")
    by_val_objects = ["cat", "only in val", "dog"]  # 2, 1 and 0
    assert order in (by_val_objects, by_val_objects[::-1])
    browser.run(
        "const list = document.querySelector('#suspects-gallery select');"
        "list.value = 'tiny'; list.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    assert browser.texts("#suspects-gallery .card-title") == ["train/tiny.png"]
    pictures = browser.run("return [...document.querySelectorAll('.pair img')].map((image) => image.naturalWidth)")
    assert len(pictures) == 4 and all(pictures)
    assert browser.messages() == []
