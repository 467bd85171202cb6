"""The report of a classifier: planted mistakes by name, comparison, many classes, hostile names."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import report_fixtures
from record_fixtures import cells, classification_record
from report_fixtures import HOSTILE_NAMES

from twins_dense.evaluation.record import Record, read_record
from twins_dense.evaluation.report.classification import headlines, sections
from twins_dense.evaluation.report.page import Section


def by_id(record: Record, against: Record | None = None, *, num_images: int = 50) -> dict[str, Section]:
    return {section.id: section for section in sections(record, against, num_images=num_images)}


def tiny(folder: Path, *, flawless: bool = False) -> Record:
    """Nine images of three classes; the last of each class is taken for the next class."""
    return read_record(report_fixtures.classification_record(folder, flawless=flawless))


def test_planted_mistakes_are_named_with_their_counts(tmp_path: Path) -> None:
    record = tiny(tmp_path / "run")
    found = by_id(record)
    assert list(found) == ["classes", "confusion", "calibration", "worst"]
    assert cells(found["confusion"].html, "confused-pairs") == [
        [truth, predicted, "1", "33.3"] for truth, predicted in [("cat", "dog"), ("dog", "bird"), ("bird", "cat")]
    ]
    rows = cells(found["classes"].html, "class-scores")
    assert rows[0] == ["cat", "66.7", "21 to 94", "100.0", "66.7", "3", "3", "n01"]
    assert found["worst"].html.count('class="card"') == 3
    assert "predicted dog with 60 %; the true class is number 2 with 30 %" in found["worst"].html
    top1, top5, error = headlines(record)
    assert (top1.value, top5.value) == (6 / 9, 1) and top1.interval == pytest.approx((0.354, 0.879), abs=1e-3)
    assert error.value == pytest.approx((6 * 0.2 + 3 * 0.6) / 9)


def test_comparison(tmp_path: Path) -> None:
    record, other = tiny(tmp_path / "mine", flawless=True), tiny(tmp_path / "other")
    found = by_id(record, other)
    assert "3 images are classified correctly that the other classifier gets wrong" in found["changes"].html
    assert found["changes"].html.count('class="card"') == 3
    assert "predicted cat with 80 %; the other predicts dog with 60 %" in found["changes"].html
    assert "now correct (3)" in found["changes"].html and "now wrong" not in found["changes"].html
    assert "No image is classified wrongly." in found["worst"].html
    assert cells(found["classes"].html, "class-scores")[0][3:5] == ["66.7", "33.3"]
    top1, top5, _ = headlines(record, other)
    assert top1.other == 6 / 9 and top1.difference is not None and 0 <= top1.difference[0] < 3 / 9 < top1.difference[1]
    assert top5.difference == (0, 0)
    assert "Both classifiers get the same images right." in by_id(other, other)["changes"].html


def test_one_image_of_one_class(tmp_path: Path) -> None:
    found = by_id(classification_record(tmp_path, [0], [[0]], [[1.0]], ["all"]))
    assert "No image is confused with another class." in found["confusion"].html
    assert cells(found["classes"].html, "class-scores")[0][:3] == ["all", "100.0", "21 to 100"]


def test_only_classes_with_images_are_listed_and_unreadable_images_are_named(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(1000)]
    tops = [[7, 1, 2, 3, 4], [900, 7, 1, 2, 3]]
    record = classification_record(
        tmp_path, [7, 30], tops, [[0.5, 0.2, 0.1, 0.1, 0.1]] * 2, names, unreadable=["x.png cannot be read (<b>)"]
    )
    found = by_id(record)
    assert [row[0] for row in cells(found["classes"].html, "class-scores")] == ["class 7", "class 30"]
    assert "998 classes without images are not listed" in " ".join(found["classes"].html.split())
    assert "the true class is not among the first 5" in found["worst"].html
    assert "x.png cannot be read (&lt;b&gt;)" in found["unreadable"].html


def test_1000_classes_with_images(tmp_path: Path) -> None:
    labels = np.arange(1000)
    tops = (labels[:, None] + [[1, 0, 2, 3, 4]]) % 1000
    names = [f"class {index}" for index in range(1000)]
    record = classification_record(tmp_path, labels.tolist(), tops.tolist(), [[0.6, 0.1, 0.1, 0.1, 0.1]] * 1000, names)
    found = by_id(record, num_images=5)
    assert len(cells(found["classes"].html, "class-scores")) == 1000
    assert "The first 30 of 1,000 pairs are listed." in found["confusion"].html
    assert "confusion-matrix" not in found["confusion"].html
    assert found["worst"].html.count('class="card"') == 5 and "5 of 1,000" in found["worst"].html


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    record = classification_record(tmp_path, [0, 1, 2], [[1, 0, 2]] * 3, [[0.6, 0.3, 0.1]] * 3, HOSTILE_NAMES)
    page = "".join(section.html for section in sections(record, record))
    assert "<img src=x" not in page and "<script>alert" not in page
    assert html.escape(HOSTILE_NAMES[0]) in page and "{{ 7 * 7 }}" in page and "🦜" in page and "long" * 75 in page
    assert "49" not in re.sub(r"data:[^\"]*", "", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
