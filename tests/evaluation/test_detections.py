"""The analysis of a detector: known answers from planted errors, and equality with hotcoco on random detections."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixtures

from twins_dense.evaluation import detection_errors as errors
from twins_dense.evaluation.average_precision import average_precisions, mean_average_precision
from twins_dense.evaluation.coco import coco_evaluation
from twins_dense.evaluation.detections import analyse_detections
from twins_dense.evaluation.intervals import bootstrap_weights
from twins_dense.evaluation.matching import ground_truth, match_record
from twins_dense.evaluation.record import About, Record, read_record
from twins_dense.evaluation.thresholds import recommend, threshold_curve

Entry = dict[str, Any]
SIZE = {"height": 400, "width": 500}
CATEGORIES = (4, 9, 2)  # not in the order of the ids


def make_record(truth: list[list[Entry]], found: list[list[Entry]], classes: Any = ("cat", "dog", "bird")) -> Record:
    """A record of boxes; each list has one item per image."""
    entries = [
        {
            "index": index,
            "file": f"/images/{index}.jpg",
            "image": {"id": 100 - index, **SIZE},
            "annotations": [{"image_id": 100 - index, **annotation} for annotation in annotations],
            "detections": [{"image_id": 100 - index, **detection} for detection in detections],
        }
        for index, (annotations, detections) in enumerate(zip(truth, found, strict=True))
    ]
    settings = {"category_ids": CATEGORIES[: len(classes)], "iou_types": ["bbox"], "max_dets": 100}
    return Record(Path("record"), About("detection", classes, len(entries), "id", "a.pth", "data", settings), entries)


def thing(box: tuple[float, ...], label: int = 0, **more: Any) -> Entry:
    return {"bbox": list(box), "category_id": CATEGORIES[label], **more}


def random_record(num_images: int = 60, seed: int = 3, digits: int = 1) -> Record:
    """Objects with moved, missing, doubled and confused detections, crowd regions, and equal scores for few digits."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(num_images):
        annotations, detections = [], []
        for _ in range(random.poisson(5)):
            box = np.array([*random.uniform(0, 300, 2), *random.uniform(10, 120, 2)])
            label = int(random.choice(3, p=(0.6, 0.37, 0.03)))
            annotations.append(thing(box, label, iscrowd=int(random.random() < 0.1)))
            for _ in range(random.integers(3)):
                moved = box + random.normal(0, 0.12, 4) * [box[2], box[3], box[2], box[3]]
                other = int(random.integers(3)) if random.random() < 0.2 else label
                detections.append(thing(np.maximum(moved, 1), other, score=round(random.random(), digits)))
        truth.append(annotations)
        found.append(detections)
    return make_record(truth, found)


def planted_record() -> tuple[Record, Counter[str]]:
    """Images with 20 found objects each, and planted errors: their numbers by TIDE's names."""
    counts = Counter({"Cls": 3, "Loc": 4, "Both": 2, "Dupe": 5, "Bkg": 6, "Miss": 7})
    slots = [(10.0 + 80 * column, 10.0 + 80 * row, 40.0, 30.0) for row in range(4) for column in range(5)]
    shifted = [(x + 20, y, width, height) for x, y, width, height in slots]  # IoU 1/3
    truth = [[thing(slot, k % 2) for k, slot in enumerate(slots)] for _ in range(4)]
    found = [[thing(slot, k % 2, score=0.6) for k, slot in enumerate(slots)] for _ in range(4)]
    for k in range(counts["Cls"]):
        found[0][k] = thing(slots[k], 1 - k % 2, score=0.9)
    for k in range(4, 4 + counts["Loc"]):
        found[0][k] = thing(shifted[k], k % 2, score=0.9)
    for k in range(10, 10 + counts["Both"]):  # the object itself is found
        found[0].append(thing(shifted[k], 1 - k % 2, score=0.9))
    found[1] += [thing(slots[k], k % 2, score=0.9) for k in range(counts["Dupe"])]  # now the first ones are duplicates
    found[2] += [thing((x + 45, y + 35, 20, 30), 0, score=0.9) for x, y, _, _ in slots[: counts["Bkg"]]]
    del found[3][: counts["Miss"]]
    return make_record(truth, found), counts


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_average_precision_equals_hotcoco(iou_type: str, tmp_path: Path) -> None:
    record = random_record() if iou_type == "bbox" else read_record(report_fixtures.detection_record(tmp_path))
    found = [detection for entry in record.entries for detection in entry["detections"]]
    precision = coco_evaluation(ground_truth(record), found, iou_type).eval["precision"][..., 0, -1].mean(axis=1)
    ours = average_precisions(match_record(record, iou_type), np.ones((1, len(record.entries)), np.int64))[0]
    by_id = np.argsort(record.about.settings["category_ids"])
    np.testing.assert_allclose(ours[:, by_id], precision, rtol=0, atol=1e-12)


def test_a_bootstrap_sample_is_the_evaluation_of_a_data_set_with_copies_of_images() -> None:
    record = random_record(25, digits=15)
    matches = match_record(record, "bbox")
    weights = np.stack(list(bootstrap_weights(25, samples=8)))
    ours = mean_average_precision(average_precisions(matches, weights))
    for value, sample in zip(ours, weights, strict=True):
        copies = []
        for entry in (entry for entry, times in zip(record.entries, sample, strict=True) for _ in range(times)):
            key = len(copies)
            renamed = {
                name: [{**item, "image_id": key} for item in entry[name]] for name in ("annotations", "detections")
            }
            copies.append({**entry, "index": key, "image": {**entry["image"], "id": key}, **renamed})
        resampled = replace(record, entries=copies)
        found = [detection for entry in copies for detection in entry["detections"]]
        precision = coco_evaluation(ground_truth(resampled), found, "bbox").eval["precision"][..., 0, -1]
        assert value == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def test_planted_errors_are_counted_by_kind() -> None:
    record, counts = planted_record()
    analysis = analyse_detections(record)
    assert {error.name: error.count for error in analysis.errors} == counts
    assert all(error.cost > 0 for error in analysis.errors if error.name != "Both")
    assert analysis.num_missed.tolist() == [7, 0, 0, 7]
    assert analysis.num_false.tolist() == [9, 5, 6, 0]
    assert analysis.num_found.tolist() == [13, 20, 20, 13]
    assert np.bincount(analysis.fates).tolist() == [66, 0, 3, 4, 7]
    # Of 40 cats, two are taken for dogs, two are found too far to the right, and four are missed. Twelve detections of
    # cats have no object of their own: two are shifted, one is beside a dog, three are duplicates, and six are nothing.
    assert analysis.confusion.tolist() == [[32, 2, 0, 6], [1, 34, 0, 5], [0, 0, 0, 0], [12, 5, 0, 0]]


def test_the_cost_of_an_error_is_the_gain_of_correcting_it() -> None:
    """One class, four objects: two are found, one is missed, and one is shifted, below a detection of background."""
    boxes = [(10.0 + 90 * k, 10.0, 60.0, 60.0) for k in range(4)]
    found = [thing(boxes[0], score=0.9), thing(boxes[1], score=0.8), thing((10, 200, 60, 60), score=0.7)]
    found += [thing((boxes[2][0] + 30, 10, 60, 60), score=0.6), thing((boxes[2][0] + 33, 10, 60, 60), score=0.5)]
    record = make_record([[thing(box) for box in boxes]], [found], classes=("cat",))
    cost = {error.name: error.cost for error in analyse_detections(record).errors}
    # 51 of 101 recalls have the precision 1. Correcting the better one of the two shifted detections adds the recalls
    # up to 0.75 with the precision 3/4; without the missed object, the recalls up to 2/3 have the precision 1.
    assert cost["Loc"] == pytest.approx(25 * 0.75 / 101)
    assert cost["Miss"] == pytest.approx((67 - 51) / 101)
    assert cost["Bkg"] == cost["Cls"] == cost["Dupe"] == cost["Both"] == 0


def test_suspected_label_errors() -> None:
    slots = [(10.0 + 80 * column, 10.0 + 80 * row, 40.0, 30.0) for row in range(4) for column in range(5)]
    truth = [[thing(slot, 0) for slot in slots] for _ in range(5)]
    found = [[thing(slot, 0, score=0.9) for slot in slots] for _ in range(5)]
    truth[1][4] = thing(slots[4], 1)  # labelled as a dog, found as a cat
    del truth[2][7]  # found, but not annotated
    del found[3][9]  # annotated, but nothing is there
    found[4][3] = thing(slots[3], 1, score=0.4)  # a wrong class, with little confidence
    record = make_record(truth, found)
    analysis = analyse_detections(record)
    found_suspects = [
        (
            suspect.kind,
            int(analysis.matches.image[suspect.detection] if suspect.detection >= 0 else -1),
            int(analysis.matches.object_image[suspect.object] if suspect.object >= 0 else -1),
            int(analysis.matches.object_source[suspect.object] if suspect.object >= 0 else -1),
        )
        for suspect in analysis.suspects
    ]
    assert found_suspects == [
        ("wrong class", 1, 1, 4),
        ("missing annotation", 2, -1, -1),
        ("spurious annotation", -1, 3, 9),
    ]


def test_a_flawless_detector(tmp_path: Path) -> None:
    analysis = analyse_detections(read_record(report_fixtures.detection_record(tmp_path, flawless=True)))
    assert [(score.name, score.value) for score in analysis.scores] == [
        ("mask AP", pytest.approx(1)),
        ("mask AP50", pytest.approx(1)),
        ("box AP", pytest.approx(1)),
    ]
    assert all(error.count == 0 and error.cost == 0 for error in analysis.errors)
    assert not analysis.suspects and not analysis.fates[analysis.fates >= 0].any()  # all are found
    assert analysis.f1.tolist() == [1] * 8


def test_the_planted_errors_of_masks(tmp_path: Path) -> None:
    analysis = analyse_detections(read_record(report_fixtures.detection_record(tmp_path)))
    counts = {error.name: error.count for error in analysis.errors}
    assert counts == {"Cls": 1, "Loc": 1, "Both": 0, "Dupe": 1, "Bkg": 1, "Miss": 1}
    assert analysis.num_errors.tolist() == [0, 1, 2, 2, 1, 1, 0, 0]
    assert analysis.matches.num_objects.sum() == 14  # without the crowd region


def test_crowd_regions_swallow_detections_and_are_not_objects() -> None:
    truth = [[thing((0, 0, 200, 200), iscrowd=1), thing((300, 300, 50, 50))]]
    found = [
        [thing((20, 20, 30, 30), score=0.9), thing((60, 60, 30, 30), score=0.8), thing((20, 20, 30, 30), 1, score=0.7)]
    ]
    analysis = analyse_detections(make_record(truth, found))
    assert analysis.kinds.tolist() == [errors.IGNORED, errors.IGNORED, errors.BACKGROUND]
    assert analysis.fates.tolist() == [-1, errors.NEVER]
    assert not analysis.suspects  # something is there, though not this class


def test_thresholds_maximise_f1_and_rare_classes_use_that_of_all() -> None:
    truth = [[thing((10, 10, 50, 50), 0), thing((200, 10, 50, 50), 1)] for _ in range(30)]
    truth[0].append(thing((10, 200, 50, 50), 2))
    cats = [[thing((10, 10, 50, 50), score=0.6), thing((10, 200, 50, 50), score=0.2 if k else 0.9)] for k in range(30)]
    dogs = [thing((200, 10, 50, 50), 1, score=0.3), thing((300, 200, 50, 50), 1, score=0.1)]
    found = [cat + dogs for cat in cats]
    matches = match_record(make_record(truth, found), "bbox")
    thresholds = recommend(matches)
    assert thresholds.own.tolist() == [True, True, False]
    assert 0.2 < thresholds.by_class[0] <= 0.6 and thresholds.by_class[0] == pytest.approx(0.4)
    assert 0.1 < thresholds.by_class[1] <= 0.3 and thresholds.by_class[1] == pytest.approx(0.2)
    assert thresholds.by_class[2] == thresholds.overall
    curve = threshold_curve(matches, 0)
    assert curve.recall[60] == 1 and curve.recall[61] == 0
    assert curve.precision[60] == pytest.approx(30 / 31) and curve.precision[90] == 0
    assert np.isnan(curve.precision[91])


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("kind", ["no detection", "no object", "neither", "one image"])
def test_extreme_data_sets(kind: str, num_classes: int) -> None:
    images = 1 if kind == "one image" else 3
    truth = [[] if kind in ("no object", "neither") else [thing((10, 10, 50, 50))] for _ in range(images)]
    found = [[] if kind in ("no detection", "neither") else [thing((10, 10, 50, 50), score=0.7)] for _ in range(images)]
    analysis = analyse_detections(make_record(truth, found, classes=("cat", "dog", "bird")[:num_classes]))
    values = [score.value for score in analysis.scores]
    costs = {error.name: error.cost for error in analysis.errors}
    if kind == "one image":
        assert values == pytest.approx([1, 1, 1]) and all(score.samples.size == 0 for score in analysis.scores)
    elif kind == "no detection":
        assert values == [0, 0, 0] and costs["Miss"] == 1 and analysis.calibration is None
        assert analysis.thresholds.overall == 0.5
    else:
        assert np.isnan(values).all()
        assert analysis.num_false.tolist() == ([1] * 3 if kind == "no object" else [0] * 3)
