"""The report of a detector names planted errors with their counts, and stands extreme data sets and hostile names."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_fixtures
import report_fixtures
from markupsafe import Markup
from pycocotools import mask as mask_utils

from twins_dense.evaluation.detections import analyse_detections
from twins_dense.evaluation.record import About, Record, RecordWriter, read_record
from twins_dense.evaluation.report.detection import headlines, sections
from twins_dense.evaluation.report.page import render_page

IDS = ["classes", "threshold", "curves", "errors", "confusion", "objects", "calibration", "labels", "worst", "best"]


def by_id(record: Record, against: Record | None = None, **options: Any) -> dict[str, str]:
    return {section.id: str(section.html) for section in sections(record, against, **options)}


def text_of(html: str) -> str:
    """Return the text of a section without charts and pictures, with single spaces."""
    without = re.sub(r"<svg.*?</svg>|<template.*?</template>", " ", html, flags=re.DOTALL)
    return " ".join(Markup(re.sub(r"<[^>]*>", " ", without)).unescape().split())


def rows_of(html: str, id: str) -> dict[str, list[str]]:
    """Return the cells of each row of a table by the first cell."""
    return {name: rest for name, *rest in record_fixtures.cells(html, id)}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return read_record(report_fixtures.detection_record(tmp_path_factory.mktemp("planted") / "evaluation"))


@pytest.fixture(scope="module")
def flawless(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("flawless") / "evaluation"
    return read_record(report_fixtures.detection_record(folder, flawless=True))


@pytest.fixture(scope="module")
def boxes(record: Record) -> Record:
    settings = {**record.about.settings, "iou_types": ["bbox"], "max_dets": 100}
    return Record(record.folder, replace(record.about, settings=settings), record.entries)


class TestPlantedErrors:
    def test_sections(self, record: Record, flawless: Record) -> None:
        assert list(by_id(record)) == IDS
        assert list(by_id(record, flawless)) == [*IDS[:8], "changes", *IDS[8:]]

    def test_error_types(self, record: Record) -> None:
        rows = rows_of(by_id(record)["errors"], "error-types")
        assert {name: cells[1] for name, cells in rows.items()} == {
            "wrong class": "1",
            "wrong position": "1",
            "wrong in both": "0",
            "duplicate": "1",
            "no object there": "1",
            "missed object": "1",
        }

    def test_classes(self, record: Record) -> None:
        # class, objects, mask AP, AP50, box AP, recall, precision, F1, threshold, detections
        rows = rows_of(by_id(record)["classes"], "class-scores")
        assert {name: [cells[0], *cells[4:6], cells[8]] for name, cells in rows.items()} == {
            "cat": ["4", "75.0", "75.0", "4"],
            "dog": ["5", "80.0", "57.1", "7"],
            "bird": ["5", "80.0", "100.0", "4"],
        }

    def test_confusion(self, record: Record) -> None:
        found = by_id(record)["confusion"]
        assert rows_of(found, "confused-pairs") == {"cat": ["dog", "1", "25.0"]}

    def test_objects(self, record: Record) -> None:
        found = by_id(record)["objects"]
        assert "1 of 14 objects (7.1 %) are never found" in text_of(found)
        # objects, found, low score, other class, poor overlap, never found
        assert rows_of(found, "size-scores")["small"][1:] == ["14", "11", "0", "1", "1", "1"]
        assert rows_of(found, "class-fates")["bird"] == ["5", "4", "0", "0", "0", "1"]

    def test_suspected_label_errors(self, record: Record) -> None:
        found = by_id(record)["labels"]
        assert {name: cells[0] for name, cells in rows_of(found, "suspects").items()} == {
            "wrong class": "1",
            "missing annotation": "1",
            "spurious annotation": "0",
        }
        assert "annotated as cat, found as dog with a score of 0.80" in text_of(found)

    def test_images(self, record: Record) -> None:
        found = by_id(record)
        worst, best = text_of(found["worst"]), text_of(found["best"])
        assert all(f"photo {i}.jpg" in worst for i in range(1, 6)) and "photo 0.jpg" not in worst
        assert "1 × missed object, 1 × wrong class; F1 0.50" in worst
        assert "photo 0.jpg" in best and "no error; F1 1.00" in best
        assert text_of(by_id(record, num_images=2)["worst"]).count("photo ") == 2

    def test_a_recommended_threshold(self, record: Record) -> None:
        assert "a score of at least 0.40 are" in text_of(by_id(record)["threshold"])

    def test_headlines(self, record: Record) -> None:
        found = headlines(record)
        assert [headline.name for headline in found] == ["mask AP", "mask AP50", "box AP"]
        for headline in found:
            low, high = headline.interval
            assert low < headline.value < high
            assert headline.other is None and headline.explanation


class TestBoxes:
    """A detector without masks."""

    def test_headlines(self, boxes: Record) -> None:
        found = headlines(boxes)
        assert [headline.name for headline in found] == ["box AP", "box AP50", "recall"]
        assert found[2].value == pytest.approx(11 / 14)

    def test_sections(self, boxes: Record) -> None:
        found = by_id(boxes)
        assert "mask AP" not in found["classes"] and "box AP" not in found["classes"]
        assert rows_of(found["classes"], "class-scores")["cat"][0] == "4"
        assert rows_of(found["errors"], "error-types")["duplicate"][1] == "1"


class TestComparison:
    def test_headlines(self, record: Record, flawless: Record) -> None:
        for headline in headlines(flawless, record):
            assert headline.value == pytest.approx(1) and headline.other < 0.8
            low, high = headline.difference
            assert 0 < low <= headline.value - headline.other <= high

    def test_images_that_changed(self, record: Record, flawless: Record) -> None:
        found = by_id(flawless, record)
        assert "F1 0.50 → 1.00, errors 2 → 0" in text_of(found["changes"])
        assert text_of(found["changes"]).count("photo ") == 5
        assert rows_of(found["classes"], "class-scores")["cat"][1] != "–"

    def test_the_same_evaluation(self, record: Record) -> None:
        assert "Every image has the same F1" in text_of(by_id(record, record)["changes"])
        assert all(headline.difference == (0, 0) for headline in headlines(record, record))


def test_a_flawless_detector(flawless: Record) -> None:
    found = {id: text_of(html) for id, html in by_id(flawless).items()}
    assert "There is no error at the recommended thresholds." in found["errors"]
    assert "No object is never found" in found["objects"]
    assert "No annotation is suspicious" in found["labels"]
    assert "No image has an error" in found["worst"]
    assert "No object is taken for one of another class." in found["confusion"]


def test_hostile_names(tmp_path: Path) -> None:
    folder = report_fixtures.detection_record(tmp_path / "a", classes=report_fixtures.HOSTILE_NAMES)
    found = read_record(folder)
    page = render_page("Report", [], headlines(found), sections(found))
    assert "<img src=x" not in page and "<script>alert" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


@pytest.mark.parametrize("kind", ["no detection", "no object", "neither", "one image", "one class"])
def test_extreme_data_sets(kind: str, record: Record) -> None:
    entries = [
        {
            **entry,
            "annotations": [] if kind in ("no object", "neither") else entry["annotations"],
            "detections": [] if kind in ("no detection", "neither") else entry["detections"],
        }
        for entry in record.entries[: 1 if kind == "one image" else None]
    ]
    about = replace(record.about, num_images=len(entries))
    if kind == "one class":
        settings = {**record.about.settings, "category_ids": [1]}
        about = replace(about, classes=["cat"], settings=settings)
        for entry in entries:
            for name in ("annotations", "detections"):
                entry[name] = [item for item in entry[name] if item["category_id"] == 1]
    changed = Record(record.folder, about, entries)
    render_page("Report", [], headlines(changed), sections(changed))
    found = {id: text_of(html) for id, html in by_id(changed).items()}
    assert "nan" not in " ".join(found.values()).lower()
    if kind in ("no detection", "neither"):
        assert "no detection is correct" in found["threshold"] and "calibration" not in found
    if kind in ("no object", "neither"):
        assert "There are no objects" in found["objects"] and "There are no objects" in found["curves"]
    if kind == "one image":
        assert all(headline.interval is None for headline in headlines(changed))
    by_id(changed, changed)


def test_300_classes(tmp_path: Path) -> None:
    folder = synthetic_record(tmp_path / "evaluation", num_images=40, num_classes=300)
    found = by_id(read_record(folder))
    assert len(rows_of(found["classes"], "class-scores")) > 100
    assert "rows and columns with the most confusions are shown" in text_of(found["confusion"])
    assert sum(map(len, found.values())) < 5e6


@pytest.mark.slow
def test_5000_images(tmp_path: Path) -> None:
    folder = synthetic_record(tmp_path / "evaluation", num_images=5000, num_classes=80)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = read_record(folder)
    page = render_page("Report", [], headlines(record), sections(record))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6 < 2  # GB on Linux
    assert len(page) < 15e6
    analysis = analyse_detections(record)
    assert len(analysis.matches.score) > 36_000
    # 70 % are found, 8 % as another class, 8 % too far to the right; the rest is missed.
    errors = {error.name: error.count / analysis.matches.num_objects.sum() for error in analysis.errors}
    assert 0.4 < analysis.scores[0].value < 0.7
    assert errors["Cls"] == pytest.approx(0.08, abs=0.03) and errors["Loc"] == pytest.approx(0.08, abs=0.03)
    assert errors["Dupe"] < 0.01


def synthetic_record(folder: Path, *, num_images: int, num_classes: int) -> Path:
    """Write the record of a detector with elliptic masks, about seven objects and seven detections per image."""
    random = np.random.default_rng(0)
    height, width = 480, 640
    file = str(report_fixtures.write_image(folder.parent / "image.jpg", 0, height=height, width=width))
    share = 1 / np.arange(1, num_classes + 1)
    settings = {"category_ids": list(range(num_classes)), "iou_types": ["bbox", "segm"], "max_dets": 100}
    names = [f"class {label}" for label in range(num_classes)]
    about = About("detection", names, num_images, "synthetic", "a.pth", "synthetic", settings)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def item(image: int, label: int, box: Any, score: float | None = None) -> dict[str, Any]:
        box = np.array(box)
        polygon = (box[:2] + box[2:] / 2 + circle * box[2:] / 2).clip(0, (width, height)).ravel().round(1).tolist()
        entry = {"image_id": image, "category_id": int(label), "bbox": box.round(1).tolist()}
        if score is None:
            area = float(box[2] * box[3] * np.pi / 4)
            return {**entry, "id": 1, "iscrowd": 0, "area": area, "segmentation": [polygon]}
        code = mask_utils.frPyObjects([polygon], height, width)[0]
        return {**entry, "score": score, "segmentation": {**code, "counts": code["counts"].decode()}}

    with RecordWriter(folder, about) as writer:
        for image in range(num_images):
            annotations, detections = [], []
            for _ in range(random.poisson(7.2)):
                size = np.exp(random.normal(4, 0.9, 2)).clip(8, 400)
                box = np.concatenate([random.uniform(0, 1, 2) * ((width, height) - size), size])
                label = random.choice(num_classes, p=share / share.sum())
                annotations.append(item(image, label, box))
                fate, score = random.random(), random.beta(5, 2)
                if fate < 0.70:
                    detections.append(item(image, label, box + random.normal(0, 0.04, 4) * np.tile(size, 2), score))
                elif fate < 0.78:
                    detections.append(item(image, (label + 1) % num_classes, box, score))
                elif fate < 0.86:
                    detections.append(item(image, label, box + np.array([0.45 * size[0], 0, 0, 0]), score))
            for _ in range(random.poisson(1.4)):
                size = np.exp(random.normal(4, 0.9, 2)).clip(8, 400)
                box = np.concatenate([random.uniform(0, 1, 2) * ((width, height) - size), size])
                detections.append(item(image, random.integers(num_classes), box, random.beta(2, 5)))
            shared = {"index": image, "file": file, "image": {"id": image, "height": height, "width": width}}
            writer.add({**shared, "annotations": annotations, "detections": detections})
    return folder
