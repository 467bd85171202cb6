"""Scores of classifiers: planted mistakes, equality with slow references, intervals, and bad records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hotcoco.metrics import calibration_error, confusion_matrix
from record_fixtures import classification_record

from twins_dense.errors import TwinsError
from twins_dense.evaluation.classification import score_classification

NAMES = ("cat", "dog", "crane", "crane")


def test_planted_mistakes(tmp_path: Path) -> None:
    """Two dogs are taken for cats and one bird for the machine; one dog is not among the first three."""
    labels = [0, 0, 1, 1, 1, 2]
    tops = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 2), (0, 2, 3), (3, 2, 1)]
    values = [(0.9, 0.1, 0.0), (0.8, 0.1, 0.1), (0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.9, 0.1, 0.0)]
    record = classification_record(tmp_path, labels, tops, values, NAMES, unreadable=["6.png cannot be read"])
    scores = score_classification(record)
    assert scores.names == ["cat", "dog", "crane (n00000002)", "crane (n00000003)"]
    assert scores.hits.mean(0).tolist() == [3 / 6, 5 / 6]
    assert scores.counts.tolist() == [[2, 2, 2], [3, 1, 2], [1, 0, 1], [0, 0, 0]]
    assert scores.confused_pairs == [(1, 0, 2), (2, 3, 1)]
    assert scores.num_predicted.tolist() == [4, 1, 0, 1]
    assert scores.unreadable == ["6.png cannot be read"]
    assert scores.calibration.error == pytest.approx(
        calibration_error([row[0] for row in values], [True] * 3 + [False] * 3, 15)[0]
    )


@pytest.mark.parametrize("num_classes", [1, 2, 150, 1000])
def test_scores_equal_slow_references(tmp_path: Path, num_classes: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, num_classes))
    labels = random.integers(num_classes, size=60).tolist()
    for row, label in zip(logits, labels, strict=True):
        row[label] += 2
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    tops = np.argsort(-chance, axis=1)[:, :5]
    record = classification_record(
        tmp_path,
        labels,
        tops.tolist(),
        np.take_along_axis(chance, tops, 1).tolist(),
        list(map(str, range(num_classes))),
    )
    scores = score_classification(record)
    for position, count in enumerate((1, 5)):
        expected = [sum(row > row[label]) < count for row, label in zip(logits, labels, strict=True)]
        assert scores.hits[:, position].tolist() == expected
    expected_confusion = np.asarray(confusion_matrix(labels, tops[:, 0].tolist(), num_classes))
    expected_confusion = expected_confusion[:num_classes, :num_classes]
    np.testing.assert_array_equal(scores.confusion, expected_confusion)
    np.testing.assert_array_equal(scores.counts[:, 0], expected_confusion.sum(1))
    np.testing.assert_array_equal(scores.counts[:, 1], expected_confusion.diagonal())
    assert sum(count for *_, count in scores.confused_pairs) == 60 - scores.hits[:, 0].sum()
    assert (num_classes == 1) == (scores.confused_pairs == [])


def test_differences_are_paired(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=200)
    wrong = random.random(200) < 0.5
    fixed = wrong & (random.random(200) < 0.2)
    records = []
    for name, predicted in (("one", labels ^ (wrong & ~fixed)), ("two", labels ^ wrong)):
        tops = [(label, 1 - label) for label in predicted.tolist()]
        records.append(classification_record(tmp_path / name, labels.tolist(), tops, [(0.7, 0.3)] * 200, "ab"))
    one, two = map(score_classification, records)
    top1, top5 = one.differences(two)
    assert top1 is not None and 0 < top1[0] < fixed.mean() < top1[1] < fixed.mean() + 0.08
    assert top5 == (0, 0)
    assert two.differences(two) == [(0, 0)] * 2


def test_no_image_could_be_read(tmp_path: Path) -> None:
    record = classification_record(tmp_path, [], [], [], NAMES, unreadable=["a.png cannot be read"])
    with pytest.raises(TwinsError, match="contains no image that could be read: validate again"):
        score_classification(record)
