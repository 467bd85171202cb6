"""The report of a segmentor: planted errors by name, comparison, few and many classes, hostile names."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import report_fixtures
from PIL import Image
from record_fixtures import cells, segmentation_record
from report_fixtures import HOSTILE_NAMES

from twins_dense.evaluation.record import Record, read_record
from twins_dense.evaluation.report.page import Section
from twins_dense.evaluation.report.segmentation import headlines, sections


def by_id(record: Record, against: Record | None = None, *, num_images: int = 50) -> dict[str, Section]:
    return {section.id: section for section in sections(record, against, num_images=num_images)}


def tiny(folder: Path, *, flawless: bool = False) -> Record:
    """Six images in which 0 to 5 columns of 24 of the first class are predicted as the second one."""
    return read_record(report_fixtures.segmentation_record(folder, flawless=flawless))


def test_planted_errors_are_named_with_their_counts(tmp_path: Path) -> None:
    found = by_id(tiny(tmp_path / "run"))
    assert list(found) == ["classes", "confusion", "boundaries", "calibration", "worst", "best"]
    wrong, pixels = 47 * sum(range(6)), 47 * 24 * 6  # the row at the bottom is ignored
    (row,) = cells(found["confusion"].html, "confused-pairs")
    assert row == ["cat", "dog", f"{wrong:,}", f"{100 * wrong / pixels:.1f}"]
    cat, dog, bird = cells(found["classes"].html, "class-scores")
    iou, others = f"{100 * (1 - wrong / pixels):.1f}", 47 * 20 * 6
    precision = 100 * others / (others + wrong)
    assert cat == [
        "cat",
        iou,
        iou,
        "100.0",
        f"{100 * (1 - wrong / pixels) / (1 - wrong / pixels / 2):.1f}",
        "6,768",
        "6",
    ]
    assert [dog[1], dog[2], dog[3]] == [f"{precision:.1f}", "100.0", f"{precision:.1f}"]
    assert bird == ["bird", *["100.0"] * 4, f"{others:,}", "6"]
    assert cells(found["boundaries"].html, "boundary-scores")[-1][0] == "bird"  # the worst comes first
    assert re.findall(r"card-title\">(.*?)<", found["worst"].html) == [f"street {i}.jpg" for i in (5, 4, 3)]
    assert re.findall(r"card-title\">(.*?)<", found["best"].html) == [f"street {i}.jpg" for i in (0, 1, 2)]
    assert "7.8 % of the pixels are wrong, most often cat as dog" in found["worst"].html
    assert found["worst"].html.count("<option") == 1 + 3 + 1 + 1  # all and the classes, all and the mistake
    assert "cat as dog (3)" in found["worst"].html


def test_comparison(tmp_path: Path) -> None:
    record, other = tiny(tmp_path / "mine", flawless=True), tiny(tmp_path / "other")
    found = by_id(record, other)
    titles = re.findall(r"card-title\">(.*?)<", found["changes"].html)
    assert titles == [f"street {i}.jpg" for i in (5, 4, 3, 2, 1)]  # image 0 does not change
    assert cells(found["classes"].html, "class-scores")[2][1:4] == ["100.0", "100.0", "0.0"]
    for mine, single in zip(headlines(record, other), headlines(record), strict=True):
        assert mine.value == single.value == 1 and mine.interval == single.interval == (1, 1)
        assert mine.other is not None and mine.other < 1 and mine.difference is not None
        assert 0 < mine.difference[0] < 1 - mine.other < mine.difference[1]
        assert single.other is single.difference is None
    other_miou = (19 / 24 + 20 / 25 + 1) / 3  # of image 5
    assert f"mIoU 100.0 %, the other {100 * other_miou:.1f} %" in found["changes"].html


def test_a_perfect_prediction_of_one_image_of_one_class(tmp_path: Path) -> None:
    truth = np.zeros((9, 12), int)
    record = segmentation_record(tmp_path, [truth], [truth], ["all"])
    found = by_id(record)
    assert list(found) == ["classes", "confusion", "boundaries", "worst"]
    assert "No pixel is confused with another class." in found["confusion"].html
    assert [headline.interval for headline in headlines(record)] == [None] * 3
    assert "<select" not in found["worst"].html


def test_only_ignored_pixels(tmp_path: Path) -> None:
    record = segmentation_record(tmp_path, [np.full((9, 12), 255)], [np.zeros((9, 12), int)], "ab")
    found = by_id(record)
    assert "2 classes without pixels" in found["classes"].html
    assert "There is no image to show." in found["worst"].html
    assert all(np.isnan(headline.value) for headline in headlines(record))


def test_images_are_turned_like_their_label_maps(tmp_path: Path) -> None:
    """Label maps belong to the image as its EXIF orientation turns it."""
    truth = np.zeros((24, 16), int)
    record = segmentation_record(tmp_path, [truth], [truth], ["all"])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (24, 16)).save(record.entries[0]["file"], exif=exif)
    assert 'width="16" height="24"' in by_id(record)["worst"].html


def test_150_classes_of_which_some_are_absent(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truths = [random.integers(100, size=(40, 50)) for _ in range(3)]
    predictions = [np.where(random.random(truth.shape) < 0.5, truth, 120) for truth in truths]
    record = segmentation_record(tmp_path, truths, predictions, [f"class {i}" for i in range(150)], first_value=0)
    found = by_id(record, num_images=1)
    assert len(cells(found["classes"].html, "class-scores")) == 101
    assert "49 classes without pixels" in found["classes"].html
    assert all(row[1] == "class 120" for row in cells(found["confusion"].html, "confused-pairs"))
    assert "61 are left out" in found["confusion"].html
    assert len(re.findall("card-title", found["worst"].html + found["best"].html)) == 2


@pytest.mark.parametrize("against", [False, True])
def test_names_are_shown_as_text(tmp_path: Path, against: bool) -> None:
    truth = np.arange(36).reshape(6, 6) % 3
    records = [
        segmentation_record(tmp_path / str(shift), [truth] * 2, [(truth + shift) % 3] * 2, HOSTILE_NAMES)
        for shift in (1, 0)
    ]
    page = "".join(section.html for section in sections(records[0], records[1] if against else None))
    assert "<img src=x" not in page and "<script>alert" not in page and "49" not in re.sub(r"data:[^\"]*", "", page)
    assert html.escape(HOSTILE_NAMES[0]) in page and "{{ 7 * 7 }}" in page and "🦜" in page and "long" * 75 in page
