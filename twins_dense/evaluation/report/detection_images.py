"""The images in the report of a detector: the worst and the best, those that changed, and suspected label errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..detection_errors import BACKGROUND, BOTH, CORRECT, DUPLICATE, ERRORS, SHIFTED, WRONG_CLASS, Suspect
from ..detections import DetectionAnalysis
from .gallery import Card, Shape, gallery, gallery_section
from .page import Section, render
from .pictures import contours_of

ERROR_NAMES: Mapping[str, str] = {
    "Cls": "wrong class",
    "Loc": "wrong position",
    "Both": "wrong in both",
    "Dupe": "duplicate",
    "Bkg": "no object there",
    "Miss": "missed object",
}
"""Names of TIDE's error types for the reader; the galleries are filtered by them."""

_MISSED = ERROR_NAMES["Miss"]
_NAME_OF = {kind: ERROR_NAMES[error] for error, kind in ERRORS.items()}
_SHAPE_OF: Mapping[int, str] = {  # kind of shape for each kind of detection
    CORRECT: "correct",
    WRONG_CLASS: "wrong_class",
    SHIFTED: "shifted",
    BOTH: "wrong_class",
    DUPLICATE: "duplicate",
    BACKGROUND: "background",
}
_ERROR_TAGS = [_MISSED, *_NAME_OF.values()]
_NUM_CHANGED = 12  # images that changed most
_NUM_SUSPECTS = 12  # images for each kind of suspects
_SUSPECTS: Mapping[str, str] = {
    "wrong class": "annotated as one class, but found as another",
    "missing annotation": "found where nothing is annotated",
    "spurious annotation": "annotated where nothing is found, although objects of this class and size are",
}


def image_sections(analysis: DetectionAnalysis, other: DetectionAnalysis | None, num_images: int) -> list[Section]:
    """Return the sections with the images that changed most, the worst images and the best images."""
    result = []
    if other is not None:
        change = analysis.f1 - other.f1
        errors = analysis.num_errors - other.num_errors
        order = np.lexsort((-np.abs(errors), -np.abs(change)))
        order = order[(change[order] != 0) | (errors[order] != 0)][:_NUM_CHANGED]
        texts = [
            f"F1 {other.f1[i]:.2f} → {analysis.f1[i]:.2f}, errors {other.num_errors[i]} → {analysis.num_errors[i]}"
            for i in order
        ]
        cards = [image_card(analysis, i, text) for i, text in zip(order, texts, strict=True)]
        result.append(
            _section(
                analysis,
                "changes",
                "Images that changed most",
                cards,
                "The images whose F1 differs most between the two evaluations: the other one stands before the arrow, "
                "this one behind it. Each uses its own recommended thresholds; the pictures show this one.",
                "Every image has the same F1 and number of errors in both evaluations.",
            )
        )
    wrong = np.flatnonzero(analysis.num_errors)
    worst = wrong[np.lexsort((-analysis.num_errors[wrong], analysis.f1[wrong]))][:num_images]
    result.append(
        _section(
            analysis,
            "worst",
            "Worst images",
            [image_card(analysis, i) for i in worst],
            "The images with the lowest F1 at the recommended thresholds; of equal ones, those with the most errors.",
            "No image has an error at the recommended thresholds.",
        )
    )
    right = np.flatnonzero((analysis.num_found > 0) & ~np.isin(np.arange(len(analysis.f1)), worst))
    best = right[np.lexsort((-analysis.num_found[right], -analysis.f1[right]))][:num_images]
    result.append(
        _section(
            analysis,
            "best",
            "Best images",
            [image_card(analysis, i) for i in best],
            "The images with the highest F1 at the recommended thresholds; of equal ones, those with the most objects.",
            "No further image has a correct detection.",
        )
    )
    return result


def suspects_section(analysis: DetectionAnalysis) -> Section:
    """Return the section about suspected label errors."""
    kinds = [kind for kind in _SUSPECTS if kind != "wrong class" or len(analysis.record.about.classes) > 1]
    numbers = Counter(suspect.kind for suspect in analysis.suspects)
    cards: list[Card] = []
    for kind in kinds:
        images: dict[int, list[Suspect]] = {}
        for suspect in analysis.suspects:
            if suspect.kind == kind:
                images.setdefault(_image_of(analysis, suspect), []).append(suspect)
        cards += [_suspects_card(analysis, *item) for item in list(images.items())[:_NUM_SUSPECTS]]
    pictures = gallery("suspects-gallery", cards, filters=[("suspicion", kinds)]) if cards else None
    rows = [(kind, numbers[kind], _SUSPECTS[kind]) for kind in kinds]
    html = render("detection_suspects.html.j2", rows=rows, gallery=pictures, limit=_NUM_SUSPECTS)
    return Section("labels", "Suspected label errors", html)


def image_card(analysis: DetectionAnalysis, image: int, text: str | None = None) -> Card:
    """Return the card of an image with its objects and the detections that reach their thresholds.

    Args:
        analysis: The analysis.
        image: Position of the image in the record.
        text: Line below the picture; `None` lists the errors and F1.
    """
    matches, names = analysis.matches, analysis.record.about.classes
    objects = np.flatnonzero((matches.object_image == image) & ~matches.object_crowd)
    detections = np.flatnonzero((matches.image == image) & analysis.kept)
    found = set(matches.matched[0, detections].tolist())
    shapes = [_object_shape(analysis, i, "truth" if i in found else "missed") for i in objects.tolist()]
    shapes += [_detection_shape(analysis, i, _SHAPE_OF[int(analysis.kinds[i])]) for i in detections.tolist()]
    errors = Counter(_NAME_OF[kind] for kind in analysis.kinds[detections].tolist() if kind != CORRECT)
    errors[_MISSED] = int(analysis.num_missed[image])
    if text is None:
        counts = [f"{errors[name]} × {name}" for name in _ERROR_TAGS if errors[name]]
        text = f"{', '.join(counts) or 'no error'}; F1 {analysis.f1[image]:.2f}"
    labels = {*matches.object_label[objects].tolist(), *matches.label[detections].tolist()}
    tags = [*(names[label] for label in sorted(labels)), *(name for name in _ERROR_TAGS if errors[name])]
    return _card(analysis, image, text, tags, shapes)


def _section(analysis: DetectionAnalysis, id: str, title: str, cards: Sequence[Card], text: str, empty: str) -> Section:
    names = analysis.record.about.classes
    filters = [("class", names), ("error", _ERROR_TAGS)] if len(names) > 1 else [("error", _ERROR_TAGS)]
    return gallery_section(id, title, cards, text=text, empty=empty, filters=filters)


def _image_of(analysis: DetectionAnalysis, suspect: Suspect) -> int:
    matches = analysis.matches
    return int(matches.object_image[suspect.object] if suspect.object >= 0 else matches.image[suspect.detection])


def _suspects_card(analysis: DetectionAnalysis, image: int, suspects: Sequence[Suspect]) -> Card:
    """Return the card of an image with suspects of one kind."""
    shapes = []
    for suspect in suspects:
        if suspect.object >= 0:
            shapes.append(_object_shape(analysis, suspect.object, "missed"))
        if suspect.detection >= 0:
            kind = "wrong_class" if suspect.object >= 0 else "background"
            shapes.append(_detection_shape(analysis, suspect.detection, kind))
    first = suspects[0]
    names = analysis.record.about.classes
    annotated = names[analysis.matches.object_label[first.object]] if first.object >= 0 else ""
    found = names[analysis.matches.label[first.detection]] if first.detection >= 0 else ""
    text = {
        "wrong class": f"annotated as {annotated}, found as {found} with a score of {first.confidence:.2f}",
        "missing annotation": f"{found} with a score of {first.confidence:.2f}, not annotated",
        "spurious annotation": f"annotated as {annotated}, nothing is found there",
    }[first.kind]
    if len(suspects) > 1:
        text += f"; {len(suspects) - 1} more like this"
    return _card(analysis, image, text, [first.kind], shapes)


def _card(analysis: DetectionAnalysis, image: int, text: str, tags: Sequence[str], shapes: Sequence[Shape]) -> Card:
    file = analysis.record.entries[image]["file"]
    return Card(file, Path(file).name, text, tags, shapes)


def _object_shape(analysis: DetectionAnalysis, index: int, kind: str) -> Shape:
    matches = analysis.matches
    entry = analysis.record.entries[matches.object_image[index]]
    name = _name(analysis, matches.object_label[index])
    return _shape(analysis, entry, entry["annotations"][matches.object_source[index]], kind, name)


def _detection_shape(analysis: DetectionAnalysis, index: int, kind: str) -> Shape:
    matches = analysis.matches
    entry = analysis.record.entries[matches.image[index]]
    label = f"{_name(analysis, matches.label[index])} {matches.score[index]:.2f}".strip()
    return _shape(analysis, entry, entry["detections"][matches.source[index]], kind, label)


def _name(analysis: DetectionAnalysis, label: int) -> str:
    """Return the name of a class, or nothing if there is only one class."""
    names = analysis.record.about.classes
    return names[label] if len(names) > 1 else ""


def _shape(
    analysis: DetectionAnalysis, entry: Mapping[str, Any], item: Mapping[str, Any], kind: str, label: str
) -> Shape:
    x, y, width, height = item["bbox"]
    contours: Sequence[np.ndarray] = ()
    if analysis.matches.iou_type == "segm":
        contours = contours_of(item.get("segmentation"), entry["image"]["height"], entry["image"]["width"])
    return Shape((x, y, x + width, y + height), kind, label, contours)
