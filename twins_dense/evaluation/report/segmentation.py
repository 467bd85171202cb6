"""Headlines and sections of the report of a segmentor."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..record import Record
from ..segmentation import IGNORED, SegmentationScores, read_confidence, read_maps, score_segmentation
from .calibration import calibration_section
from .formatting import percent
from .gallery import Card, Layer, gallery_section
from .page import Headline, Section, render
from .pictures import LONG_SIDE

_EXPLANATIONS = {
    "mIoU": "Intersection over union, averaged over the classes.",
    "mAcc": "Share of the pixels of a class that are found, averaged over the classes.",
    "aAcc": "Share of all pixels that are classified correctly.",
}
_PAIRS = 20  # rows of the table of confusions
_CHANGED = 12  # images that changed most
_MISTAKES = 3  # mistakes of an image by which it can be found
_WRONG, _UNKNOWN = (213, 94, 0), (150, 150, 150)
_CONFIDENCE_LIMITS = (0.5, 0.7, 0.9)
_CONFIDENCE_NAMES = ("confidence below 50 %", "50 to 70 %", "70 to 90 %", "above 90 %")
# From matplotlib's cividis, which people with colour vision deficiency see as others do.
_CONFIDENCE_COLORS = ((0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56))


def headlines(record: Record, against: Record | None = None) -> list[Headline]:
    """Return mIoU, mAcc and aAcc with 95 % bootstrap intervals over images.

    Args:
        record: Record of a segmentor.
        against: Record of the same images and classes to compare with.
    """
    scores = score_segmentation(record)
    other = score_segmentation(against) if against is not None else None
    intervals, values = scores.intervals(), scores.totals()
    others = other.totals() if other else {}
    differences = scores.intervals(other) if other else {}
    return [
        Headline(name, values[name], intervals[name], others.get(name), differences.get(name), explanation)
        for name, explanation in _EXPLANATIONS.items()
    ]


def sections(record: Record, against: Record | None = None, *, num_images: int = 50) -> list[Section]:
    """Return the sections of the report of a segmentor.

    Args:
        record: Record of a segmentor.
        against: Record of the same images and classes to compare with.
        num_images: Largest number of images in each of the galleries of the worst and the best images.
    """
    scores = score_segmentation(record)
    other = score_segmentation(against) if against is not None else None
    order = np.argsort(scores.of_images, kind="stable")
    order = order[np.isfinite(scores.of_images[order])]
    worst, best = order[: min(num_images, -(-len(order) // 2))], order[::-1][: min(num_images, len(order) // 2)]
    cards = functools.partial(_cards, record, scores)
    found = [_classes(record, scores, other), _confusion(record, scores), _boundaries(record, scores)]
    if scores.calibration is not None:
        found.append(calibration_section(scores.calibration, "pixels"))
    if against is not None and other is not None:
        found.append(_changes(record, scores, against, other))
    found.append(
        _images("worst", "Worst images", "The images with the lowest mIoU, the worst first.", cards(worst), record)
    )
    if len(best):
        text = "The images with the highest mIoU, the best first."
        found.append(_images("best", "Best images", text, cards(best), record))
    return found


def _classes(record: Record, scores: SegmentationScores, other: SegmentationScores | None) -> Section:
    areas, others = scores.regions.total(), other.regions.total() if other else None
    columns = [("class", "text"), ("IoU", "score")]
    columns += [("other IoU", "score"), ("difference", "score")] if others else []
    columns += [("recall", "score"), ("precision", "score"), ("F1", "score"), ("pixels", "count"), ("images", "count")]
    rows = []
    listed = _listed(scores)
    for label in listed:
        row = [record.about.classes[label], areas.iou[label]]
        row += [others.iou[label], areas.iou[label] - others.iou[label]] if others else []
        row += [areas.recall[label], areas.precision[label], areas.f1[label]]
        rows.append([*row, areas.truth[label], np.count_nonzero(scores.regions.truth[:, label])])
    num_absent = len(record.about.classes) - len(listed)
    html = render("segmentation_classes.html.j2", columns=columns, rows=rows, num_absent=num_absent)
    return Section("classes", "Scores by class", html)


def _confusion(record: Record, scores: SegmentationScores) -> Section:
    names = record.about.classes
    totals = scores.confusion.sum(1)
    pairs = [
        (names[truth], names[predicted], count, count / totals[truth])
        for truth, predicted, count in scores.confused_pairs[:_PAIRS]
    ]
    listed = _listed(scores)
    shares = np.round(100 * scores.confusion / np.maximum(totals, 1)[:, None], 1)[np.ix_(listed, listed)]
    shown = [names[label] for label in listed]
    html = render("segmentation_confusion.html.j2", pairs=pairs, names=shown, shares=shares.tolist())
    return Section("confusion", "Confused classes", html)


def _boundaries(record: Record, scores: SegmentationScores) -> Section:
    regions, boundaries = scores.regions.total().iou, scores.boundaries.total().iou
    rows = [
        (record.about.classes[label], boundaries[label], regions[label], scores.boundary_share[label])
        for label in sorted(_listed(scores), key=lambda label: boundaries[label])
    ]
    html = render(
        "segmentation_boundaries.html.j2",
        rows=rows,
        mean=np.nanmean(boundaries) if rows else np.nan,
        widths=(scores.boundary_widths.min(), scores.boundary_widths.max()),
    )
    return Section("boundaries", "Boundaries and thin classes", html)


def _changes(record: Record, scores: SegmentationScores, against: Record, other: SegmentationScores) -> Section:
    change = scores.of_images - other.of_images
    order = [i for i in np.argsort(-np.abs(change), kind="stable") if np.isfinite(change[i]) and change[i]][:_CHANGED]
    texts = [f"mIoU {percent(scores.of_images[i])} %, the other {percent(other.of_images[i])} %" for i in order]
    cards = [_card(record, scores, i, text, against) for i, text in zip(order, texts, strict=True)]
    text = "The images whose mIoU differs most. “Other” shows the prediction of the other evaluation."
    return _images("changes", "Images that changed most", text, cards, record)


def _images(id: str, title: str, text: str, cards: Sequence[Card], record: Record) -> Section:
    names = set(record.about.classes)
    mistakes = Counter(tag for card in cards for tag in card.tags if tag not in names)
    filters = [("class", record.about.classes), ("mistake", [mistake for mistake, _ in mistakes.most_common()])]
    if len(names) == 1:  # there is nothing to choose
        filters = []
    return gallery_section(id, title, cards, text=text, empty="There is no image to show.", filters=filters)


def _cards(record: Record, scores: SegmentationScores, indices: Sequence[int]) -> list[Card]:
    return [_card(record, scores, i, f"mIoU {percent(scores.of_images[i])} %") for i in indices]


def _card(record: Record, scores: SegmentationScores, index: int, text: str, against: Record | None = None) -> Card:
    entry, names = record.entries[index], record.about.classes
    truth, prediction = read_maps(record, entry)
    known, wrong = truth != IGNORED, (truth != prediction) & (truth != IGNORED)
    mistakes = _mistakes(names, truth[wrong], prediction[wrong])
    if mistakes:
        text += f"; {percent(wrong.sum() / known.sum())} % of the pixels are wrong, most often {mistakes[0]}"
    palette = record.about.settings["palette"]
    small = {"truth": truth, "prediction": prediction}
    if against is not None:
        small["other"] = read_maps(against, against.entries[index])[1]
    layers = [Layer(name, _reduced(labels), palette, names) for name, labels in small.items()]
    errors = np.where(wrong, 0, np.where(known, IGNORED, 1)).astype(np.uint8)
    layers.append(Layer("errors", _reduced(errors), (_WRONG, _UNKNOWN), ("wrong pixels", "ignored pixels")))
    confidence = read_confidence(record, entry)
    if confidence is not None:
        steps = np.digitize(confidence / 255, _CONFIDENCE_LIMITS).astype(np.uint8)
        layers.append(Layer("confidence", steps, _CONFIDENCE_COLORS, _CONFIDENCE_NAMES))
    present = (scores.regions.truth[index] > 0) | (scores.regions.prediction[index] > 0)
    tags = [name for name, is_present in zip(names, present, strict=True) if is_present] + mistakes
    return Card(entry["file"], Path(entry["file"]).name, text, tags, layers=layers)


def _mistakes(names: Sequence[str], truth: np.ndarray, prediction: np.ndarray) -> list[str]:
    """Return the most frequent mistakes of an image, such as "tree as building", from the classes of wrong pixels."""
    pairs, counts = np.unique(truth.astype(np.int64) * len(names) + prediction, return_counts=True)
    order = pairs[np.argsort(-counts, kind="stable")][:_MISTAKES].tolist()
    return [f"{names[pair // len(names)]} as {names[pair % len(names)]}" for pair in order]


def _listed(scores: SegmentationScores) -> list[int]:
    """Return the classes that have pixels in the truth or in the prediction."""
    areas = scores.regions.total()
    return np.flatnonzero(areas.truth + areas.prediction).tolist()


def _reduced(array: np.ndarray) -> np.ndarray:
    """Reduce a map to about the size of a thumbnail, because the maps of many images are in memory at once."""
    step = max(1, max(array.shape) // LONG_SIDE)
    return np.ascontiguousarray(array[step // 2 :: step, step // 2 :: step])
