"""Headlines and sections of the report of a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..classification import ClassificationScores, score_classification
from ..intervals import wilson_interval
from ..record import Record
from .calibration import calibration_section
from .gallery import Card, gallery_section
from .page import Headline, Section, render

_PAIRS = 30  # rows of the table of confusions
_CHANGED = 30  # images that changed
_MATRIX = 40  # classes of the largest confusion matrix


def headlines(record: Record, against: Record | None = None) -> list[Headline]:
    """Return the top-1 and top-5 accuracy with 95 % intervals by Wilson's method, and the calibration error.

    Args:
        record: Record of a classifier.
        against: Record of the same images and classes to compare with.
    """
    scores = score_classification(record)
    other = score_classification(against) if against is not None else None
    num_images, protocol = len(scores.labels), record.about.settings["protocol"]
    others = other.hits.mean(0).tolist() if other else [None, None]
    differences = scores.differences(other) if other else [None, None]
    explanations = (
        f"Share of the {num_images:,} images whose class is the most probable one ({protocol} protocol).",
        "Share of the images whose class is among the five most probable ones.",
    )
    found = []
    for i, (name, correct) in enumerate(zip(("top-1", "top-5"), scores.hits.sum(0).tolist(), strict=True)):
        interval = wilson_interval(correct, num_images)
        found.append(Headline(name, correct / num_images, interval, others[i], differences[i], explanations[i]))
    error = "Mean distance between confidence and accuracy (ECE)."
    other_error = other.calibration.error if other else None
    return [*found, Headline("calibration error", scores.calibration.error, None, other_error, None, error)]


def sections(record: Record, against: Record | None = None, *, num_images: int = 50) -> list[Section]:
    """Return the sections of the report of a classifier.

    Args:
        record: Record of a classifier.
        against: Record of the same images and classes to compare with.
        num_images: Largest number of images in the gallery of the worst images.
    """
    scores = score_classification(record)
    other = score_classification(against) if against is not None else None
    found = [_classes(record, scores, other), _confusion(scores), calibration_section(scores.calibration, "images")]
    if other is not None:
        found.append(_changes(record, scores, other))
    found.append(_worst(record, scores, num_images))
    if scores.unreadable:
        html = render("classification_unreadable.html.j2", lines=scores.unreadable)
        found.append(Section("unreadable", "Unreadable images", html))
    return found


def _classes(record: Record, scores: ClassificationScores, other: ClassificationScores | None) -> Section:
    others = other.counts if other else None
    columns = [("class", "text"), ("top-1", "score"), ("95 % interval", "text")]
    columns += [("other top-1", "score"), ("difference", "score")] if other else []
    columns += [("top-5", "score"), ("precision", "score"), ("images", "count"), ("predicted", "count"), ("id", "text")]
    rows = []
    predicted = scores.num_predicted
    for label, (count, top1, top5) in enumerate(scores.counts.tolist()):
        if not count:
            continue
        low, high = wilson_interval(top1, count) or (0.0, 1.0)
        row: list[Any] = [scores.names[label], top1 / count, f"{100 * low:.0f} to {100 * high:.0f}"]
        if others is not None:
            share = others[label, 1] / others[label, 0] if others[label, 0] else np.nan
            row += [share, top1 / count - share]
        precision = top1 / predicted[label] if predicted[label] else None
        rows.append([*row, top5 / count, precision, count, predicted[label], record.about.settings["wnids"][label]])
    num_absent = len(scores.names) - len(rows)
    html = render("classification_classes.html.j2", columns=columns, rows=rows, num_absent=num_absent)
    return Section("classes", "Accuracy by class", html)


def _confusion(scores: ClassificationScores) -> Section:
    pairs, counts = scores.confused_pairs, scores.counts[:, 0]
    rows = [
        (scores.names[truth], scores.names[predicted], count, count / counts[truth])
        for truth, predicted, count in pairs[:_PAIRS]
    ]
    used = np.flatnonzero(counts + scores.num_predicted).tolist()
    names, values = [], []
    if 2 < len(used) <= _MATRIX:
        names, values = [scores.names[label] for label in used], scores.confusion[np.ix_(used, used)].tolist()
    html = render("classification_confusion.html.j2", pairs=rows, num_pairs=len(pairs), names=names, values=values)
    return Section("confusion", "Confused classes", html)


def _changes(record: Record, scores: ClassificationScores, other: ClassificationScores) -> Section:
    _, mine, theirs = np.intersect1d(scores.indices, other.indices, return_indices=True)
    now, before = scores.hits[mine, 0], other.hits[theirs, 0]
    changed = np.flatnonzero(now != before)
    mistakes = np.where(now, other.probabilities[theirs, 0], scores.probabilities[mine, 0])
    cards = []
    for i in changed[np.argsort(-mistakes[changed], kind="stable")][:_CHANGED]:
        label, probability = other.top[theirs[i], 0], other.probabilities[theirs[i], 0]
        text = f"; the other predicts {other.names[label]} with {100 * probability:.0f} %"
        cards.append(_card(record, scores, mine[i], text, "now correct" if now[i] else "now wrong"))
    num_better, num_worse = np.count_nonzero(now[changed]), np.count_nonzero(before[changed])
    return gallery_section(
        "changes",
        "Images that changed",
        cards,
        text=f"{num_better:,} images are classified correctly that the other classifier gets wrong, and {num_worse:,} "
        "the other way round. The most certain mistakes come first.",
        empty="Both classifiers get the same images right.",
        filters=[("change", ["now correct", "now wrong"])],
    )


def _worst(record: Record, scores: ClassificationScores, num_images: int) -> Section:
    wrong = np.flatnonzero(~scores.hits[:, 0])
    order = wrong[np.argsort(-scores.probabilities[wrong, 0], kind="stable")]
    cards = [_card(record, scores, index) for index in order[:num_images]]
    return gallery_section(
        "worst",
        "Worst images",
        cards,
        text=f"The wrong predictions with the highest confidence, {len(cards)} of {len(wrong):,}. Check whether the "
        "true class, above each text, is right: wrong labels often come first.",
        empty="No image is classified wrongly.",
        filters=[("class", scores.names)],
    )


def _card(record: Record, scores: ClassificationScores, index: int, more: str = "", *tags: str) -> Card:
    truth, top = scores.names[scores.labels[index]], scores.top[index].tolist()
    probabilities = scores.probabilities[index].tolist()
    predicted = scores.names[top[0]]
    text = f"predicted {predicted} with {100 * probabilities[0]:.0f} %"
    if scores.labels[index] in top[1:]:
        rank = top.index(scores.labels[index])
        text += f"; the true class is number {rank + 1} with {100 * probabilities[rank]:.0f} %"
    elif predicted != truth:
        text += f"; the true class is not among the first {len(top)}"
    return Card(record.entries[scores.indices[index]]["file"], truth, text + more, (*tags, truth, predicted))
