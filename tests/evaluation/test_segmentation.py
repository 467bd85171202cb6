"""Scores of segmentors: equal to mmsegmentation, planted errors, thin classes, calibration, and bad records."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hotcoco.metrics import calibration_curve, calibration_error
from PIL import Image
from record_fixtures import segmentation_record

from twins_dense.errors import TwinsError
from twins_dense.evaluation.calibration import calibration
from twins_dense.evaluation.segmentation import read_maps, score_segmentation

NAMES = ("road", "pole", "sky")


def maps(seed: int, num_classes: int, count: int, *, ignored: float = 0.1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random maps with regions of some pixels; the last class is in no truth, the first in no prediction."""
    random = np.random.default_rng(seed)
    truths, predictions = [], []
    for _ in range(count):
        height, width = random.integers(29, 53, size=2)
        truth = random.integers(num_classes - 1, size=(height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)
        truth = truth[:height, :width]
        swapped = random.random(truth.shape) < 0.3
        prediction = np.where(swapped, random.integers(1, num_classes, size=truth.shape), truth.clip(1))
        truths.append(np.where(random.random(truth.shape) < ignored, 255, truth))
        predictions.append(prediction)
    return truths, predictions


@pytest.mark.parametrize(("num_classes", "first_value"), [(3, 0), (11, 1), (150, 1), (150, 0)])
def test_scores_equal_those_of_mmsegmentation(tmp_path: Path, num_classes: int, first_value: int) -> None:
    from mmseg.evaluation.metrics import IoUMetric

    truths, predictions = maps(7, num_classes, 4)
    on_disk = [np.where(truth == 255, 0, truth + 1) for truth in truths] if first_value else truths
    classes = [f"class {index}" for index in range(num_classes)]
    scores = score_segmentation(segmentation_record(tmp_path, on_disk, predictions, classes, first_value=first_value))
    areas = [
        IoUMetric.intersect_and_union(torch.from_numpy(prediction), torch.from_numpy(truth), num_classes, 255)
        for truth, prediction in zip(truths, predictions, strict=True)
    ]
    # In float64, because float32 has too few digits for the comparison.
    totals = [sum(parts).double() for parts in zip(*areas, strict=True)]
    expected = IoUMetric.total_area_to_metrics(*totals, ["mIoU", "mDice", "mFscore"])
    mine = scores.regions.total()
    for values, name in [(mine.iou, "IoU"), (mine.recall, "Acc"), (mine.precision, "Precision"), (mine.f1, "Dice")]:
        np.testing.assert_allclose(values, expected[name], rtol=1e-12)
    assert np.isnan(mine.recall[-1]) and mine.iou[-1] == 0 and mine.iou[0] == 0
    for name, value in scores.totals().items():
        assert value == pytest.approx(np.nanmean(expected[name.removeprefix("m")]), rel=1e-12)
    for index, of_image in enumerate(areas):
        miou = IoUMetric.total_area_to_metrics(*(part.double() for part in of_image))["IoU"]
        assert scores.of_images[index] == pytest.approx(np.nanmean(miou), rel=1e-12)


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_label_maps_that_are_turned(tmp_path: Path, orientation: int) -> None:
    """Uncompressed TIFF files, which Pillow scrambles if it opens them by name."""
    truth, prediction = np.indices((40, 30))[1] // 10, np.indices((40, 30))[0] // 14
    record = segmentation_record(tmp_path, [truth], [prediction], NAMES)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {3: lambda a: a[::-1, ::-1], 5: lambda a: a.T, 6: np.rot90, 7: lambda a: a[::-1, ::-1].T}
    stored = turns.get(orientation, lambda a: np.rot90(a, -1))(truth)
    for entry in record.entries:
        Image.fromarray(stored.astype(np.uint8)).save(entry["labels"], "tiff", exif=exif)
    np.testing.assert_array_equal(read_maps(record, record.entries[0])[0], truth)


def test_planted_confusion(tmp_path: Path) -> None:
    truth = np.zeros((20, 30), int)
    truth[:, 10:20], truth[:, 20:], truth[0] = 1, 2, 255
    prediction = truth.clip(max=2)
    prediction[1:8, 10:14] = 0  # 28 pixels of pole as road
    prediction[3, 25] = 1
    scores = score_segmentation(segmentation_record(tmp_path, [truth], [prediction], NAMES))
    assert scores.confusion.tolist() == [[190, 0, 0], [28, 162, 0], [0, 1, 189]]
    assert scores.confused_pairs == [(1, 0, 28), (2, 1, 1)]
    areas = scores.regions.total()
    assert areas.iou.tolist() == [190 / 218, 162 / 191, 189 / 190]
    assert areas.recall.tolist() == [1, 162 / 190, 189 / 190]
    assert areas.precision.tolist() == [190 / 218, 162 / 163, 1]
    assert scores.totals()["aAcc"] == 541 / 570
    assert scores.intervals() == {"mIoU": None, "mAcc": None, "aAcc": None}  # a single image


def test_a_perfect_prediction_of_one_class(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), int)
    scores = score_segmentation(segmentation_record(tmp_path, [truth] * 2, [truth] * 2, ["all"]))
    assert scores.totals() == {"mIoU": 1, "mAcc": 1, "aAcc": 1}
    assert scores.intervals() == dict.fromkeys(scores.totals(), (1, 1))
    assert scores.boundaries.total().iou.tolist() == [1] and scores.confused_pairs == []


def test_an_image_without_known_pixels(tmp_path: Path) -> None:
    truth, prediction = np.full((8, 9), 255), np.zeros((8, 9), int)
    scores = score_segmentation(segmentation_record(tmp_path, [truth], [prediction], NAMES))
    assert np.isnan([*scores.totals().values(), *scores.of_images]).all()


# Boundaries


def reference_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The function `mask_to_boundary` of the authors' repository, bowenc0221/boundary-iou-api."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & ~eroded[1:-1, 1:-1].astype(bool)


@pytest.mark.parametrize("ignored", [0.0, 0.01])
@pytest.mark.parametrize("fraction", [0.02, 0.05])
def test_boundary_iou_equals_that_of_its_authors(tmp_path: Path, ignored: float, fraction: float) -> None:
    truths, predictions = maps(3, 5, 3, ignored=ignored)
    truths, predictions = ([np.kron(array, np.ones((3, 3), int)) for array in part] for part in (truths, predictions))
    scores = score_segmentation(segmentation_record(tmp_path, truths, predictions, "abcde"), boundary_width=fraction)
    both, union = np.zeros(5), np.zeros(5)
    for truth, prediction, width in zip(truths, predictions, scores.boundary_widths, strict=True):
        assert width == round(fraction * np.hypot(*truth.shape))
        for label in range(5):
            first, second = (
                reference_boundary((array == label) & (truth != 255), width) for array in (truth, prediction)
            )
            both[label] += (first & second).sum()
            union[label] += (first | second).sum()
    np.testing.assert_array_equal(scores.boundaries.total().iou, both / union)


def test_thin_classes(tmp_path: Path) -> None:
    """The IoU of a large class hides errors at its boundary, which its Boundary IoU shows."""
    truth = np.zeros((120, 160), int)
    truth[40:80, 40:120], truth[:, 140:142] = 2, 1
    prediction = truth.copy()
    prediction[38:82, 38:122] = 2  # the block is two pixels too large on each side
    scores = score_segmentation(segmentation_record(tmp_path, [truth], [prediction], NAMES))
    assert scores.boundary_widths.tolist() == [4]
    assert scores.boundary_share[1] == 1 and scores.boundary_share[2] < 0.3
    regions, boundaries = scores.regions.total().iou, scores.boundaries.total().iou
    assert regions[2] > 0.85 and boundaries[2] < 0.4
    assert boundaries[1] == regions[1] == 1


# Intervals


def test_intervals_contain_the_value_and_pairs_are_narrower(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truths = [random.integers(3, size=(16, 16)) for _ in range(30)]
    shares = random.random(30)
    noisy = [np.where(random.random((16, 16)) < share, 0, truth) for share, truth in zip(shares, truths, strict=True)]
    better = [np.where(random.random((16, 16)) < 0.2, truth, guess) for guess, truth in zip(noisy, truths, strict=True)]
    one, two = (
        score_segmentation(segmentation_record(tmp_path / name, truths, predictions, NAMES))
        for name, predictions in (("one", better), ("two", noisy))
    )
    single, paired = one.intervals(), one.intervals(two)
    for name, value in one.totals().items():
        low, high = single[name] or (0, 0)
        assert low < value < high
        lower, upper = paired[name] or (0, 0)
        assert 0 < lower < value - two.totals()[name] < upper and upper - lower < high - low
    weights = np.eye(30, dtype=int)[4] * 3
    assert one.totals(weights)["mIoU"] == pytest.approx(one.of_images[4])


# Calibration


def test_calibration_equals_that_of_hotcoco() -> None:
    random = np.random.default_rng(1)
    levels = random.integers(256, size=2000)
    correct = random.random(2000) < (levels / 255) ** 2
    total, right = np.bincount(levels, minlength=256), np.bincount(levels[correct], minlength=256)
    for result in (calibration(levels / 255, correct), calibration(np.arange(256) / 255, right, total)):
        expected = calibration_curve(levels / 255, correct, n_bins=15)
        assert result.counts.tolist() == [row["count"] for row in expected]
        np.testing.assert_allclose(result.accuracy, [row["avg_accuracy"] for row in expected])
        np.testing.assert_allclose(result.confidence, [row["avg_confidence"] for row in expected])
        assert result.error == pytest.approx(calibration_error(levels / 255, correct, n_bins=15)[0])
        assert result.bias == pytest.approx(np.mean(levels / 255 - correct))
    assert np.isnan(calibration(np.zeros(0), np.zeros(0)).error)
    assert calibration(np.ones(3), np.ones(3, bool)).error == 0


def test_pixels_are_calibrated_at_the_size_of_the_confidence(tmp_path: Path) -> None:
    truth = np.zeros((8, 12), int)
    truth[:, 6:], truth[:2] = 1, 255
    prediction = np.zeros((8, 12), int)
    confidence = np.full((4, 6), 204, np.uint8)  # 0.8
    record = segmentation_record(tmp_path, [truth], [prediction], NAMES, confidences=[confidence])
    result = score_segmentation(record).calibration
    assert result is not None
    assert result.counts.sum() == 18  # three rows of six, because the first is ignored
    assert np.nanmax(result.accuracy) == 0.5 and result.error == pytest.approx(0.3) == pytest.approx(result.bias)


@pytest.mark.parametrize(("height", "width", "step"), [(23, 31, 1), (23, 31, 2), (29, 17, 3), (512, 683, 3)])
def test_confidences_belong_to_the_pixels_of_which_they_were_recorded(
    tmp_path: Path, height: int, width: int, step: int
) -> None:
    """Pixels of the second class are right and certain, the others wrong and uncertain."""
    truth = np.random.default_rng(0).integers(2, size=(height, width))
    confidence = np.where(truth == 1, 255, 51).astype(np.uint8)[::step, ::step]
    record = segmentation_record(tmp_path, [truth], [np.ones_like(truth)], "ab", confidences=[confidence])
    result = score_segmentation(record).calibration
    assert result is not None and result.counts.sum() == confidence.size
    assert (result.accuracy[3], result.accuracy[-1]) == (0, 1)  # 51 / 255 is 0.2


def test_a_confidence_of_another_size(tmp_path: Path) -> None:
    truth = np.zeros((8, 12), int)
    record = segmentation_record(tmp_path, [truth], [truth], "ab", confidences=[np.zeros((5, 6), np.uint8)])
    with pytest.raises(TwinsError, match=r"0-confidence.png does not match the image: evaluate again"):
        score_segmentation(record)


def test_without_confidence_there_is_no_calibration(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), int)
    assert score_segmentation(segmentation_record(tmp_path, [truth], [truth], ["all"])).calibration is None


# Bad records


def test_an_evaluation_without_a_finished_image(tmp_path: Path) -> None:
    with pytest.raises(TwinsError, match="contains no finished image"):
        score_segmentation(segmentation_record(tmp_path, [], [], NAMES))


def test_label_maps_that_changed(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), int)
    record = segmentation_record(tmp_path, [truth], [truth], NAMES)
    labels = tmp_path / "labels" / "0.png"
    for change, expected in [
        (np.full((8, 9), 3), "0.png does not match the evaluation: .*label 3"),
        (np.zeros((9, 8)), "has 8x9 pixels, the recorded prediction 9x8: evaluate again"),
    ]:
        cv2.imwrite(str(labels), change.astype(np.uint8))
        with pytest.raises(TwinsError, match=expected):
            score_segmentation(record)
    labels.unlink()
    with pytest.raises(TwinsError, match=r"0.png cannot be read .*the report needs this label map"):
        score_segmentation(record)
