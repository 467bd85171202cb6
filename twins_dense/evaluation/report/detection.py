"""Headlines and sections of the report of a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from ..confusion import confused_pairs
from ..detection_errors import NEVER
from ..detections import CALIBRATION_FLOOR, SIZES, DetectionAnalysis, analyse_detections
from ..intervals import interval_of
from ..record import Record
from ..thresholds import GRID, MIN_OBJECTS, ThresholdCurve, threshold_curve
from .calibration import calibration_section
from .charts import Line, bar_chart, line_chart
from .detection_images import ERROR_NAMES, image_sections, suspects_section
from .page import Headline, Section, render

_EXPLANATIONS: Mapping[str, str] = {
    "AP": "COCO's average precision of {}: the mean over classes and over IoU thresholds from 0.5 to 0.95.",
    "AP50": "Average precision of {} at an IoU of 0.5, for which a rough position is enough.",
}
_RECALL = "Share of the objects that are found at the recommended score thresholds, with an IoU of at least 0.5."
_ERRORS: Mapping[str, str] = {
    "Cls": "An object is found at the right place (IoU of 0.5 or more), but with the wrong class.",
    "Loc": "The class is right, but the overlap with the object is too small (IoU 0.1 to 0.5).",
    "Both": "The class is wrong, and the overlap is too small (IoU 0.1 to 0.5).",
    "Dupe": "The object was found already by a detection with a higher score.",
    "Bkg": "Something is detected where there is no object (IoU below 0.1).",
    "Miss": "The object is not found, not even with a wrong class or a wrong position.",
}
_PAIRS = 20  # rows of the table of confused classes


def headlines(record: Record, against: Record | None = None) -> list[Headline]:
    """Return the three scores that matter with 95 % bootstrap intervals over images.

    Args:
        record: Record of a detector.
        against: Record of the same images and classes, in the same order, to compare with.
    """
    others = {} if against is None else {score.name: score for score in analyse_detections(against).scores}
    result = []
    for score in analyse_detections(record).scores:
        noun, _, kind = score.name.partition(" ")
        text = _EXPLANATIONS[kind].format({"mask": "masks", "box": "boxes"}[noun]) if kind else _RECALL
        headline = Headline(score.name, score.value, interval_of(score.samples, score.value), explanation=text)
        if score.name in others:
            other = others[score.name]
            difference = interval_of(score.samples - other.samples, score.value - other.value)
            headline = replace(headline, other=other.value, difference=difference)
        result.append(headline)
    return result


def sections(record: Record, against: Record | None = None, *, num_images: int = 50) -> list[Section]:
    """Return the sections of the report of a detector.

    Args:
        record: Record of a detector.
        against: Record of the same images and classes, in the same order, to compare with.
        num_images: Largest number of images in each of the galleries of the worst and the best images.
    """
    analysis = analyse_detections(record)
    other = None if against is None else analyse_detections(against)
    curves = [threshold_curve(analysis.matches, label) for label in range(len(record.about.classes))]
    found = [
        _classes(analysis, curves, other),
        _threshold(analysis, curves),
        _curves(analysis),
        _errors(analysis),
        _confusion(analysis),
        _objects(analysis),
    ]
    if analysis.calibration is not None:
        section = calibration_section(analysis.calibration, "detections")
        note = render("detection_calibration.html.j2", floor=CALIBRATION_FLOOR)
        found.append(replace(section, html=section.html + note))
    return [*found, suspects_section(analysis), *image_sections(analysis, other, num_images)]


def _classes(analysis: DetectionAnalysis, curves: Sequence[ThresholdCurve], other: DetectionAnalysis | None) -> Section:
    matches, names = analysis.matches, analysis.record.about.classes
    num_objects = matches.num_objects
    num_detections = np.bincount(matches.label[analysis.kept], minlength=len(names))
    ap50 = analysis.precision[0].mean(axis=0)
    kind = "mask AP" if analysis.box_ap is not None else "AP"
    columns = [("class", "text"), ("objects", "count"), (kind, "score")]
    columns += [("difference", "score")] if other else []
    columns += [("AP50", "score")] + ([("box AP", "score")] if analysis.box_ap is not None else [])
    columns += [("recall", "score"), ("precision", "score"), ("F1", "score"), ("threshold", "number")]
    columns += [("detections", "count")]
    rows = []
    listed = np.flatnonzero((num_objects > 0) | (num_detections > 0))
    for label in listed[np.argsort(-num_objects[listed], kind="stable")]:
        threshold = analysis.thresholds.by_class[label]
        position = int(np.searchsorted(GRID, threshold))
        row = [names[label], num_objects[label], analysis.ap[label]]
        row += [analysis.ap[label] - other.ap[label]] if other else []
        row += [ap50[label]] + ([analysis.box_ap[label]] if analysis.box_ap is not None else [])
        row += [getattr(curves[label], name)[position] for name in ("recall", "precision", "f1")]
        rows.append([*row, threshold, num_detections[label]])
    html = render(
        "detection_classes.html.j2",
        columns=columns,
        rows=rows,
        compared=other is not None,
        num_absent=len(names) - len(rows),
        num_own=int(analysis.thresholds.own.sum()),
        min_objects=MIN_OBJECTS,
        overall=analysis.thresholds.overall,
    )
    return Section("classes", "Scores by class", html)


def _threshold(analysis: DetectionAnalysis, curves: Sequence[ThresholdCurve]) -> Section:
    overall, best = threshold_curve(analysis.matches), analysis.thresholds.overall
    position = int(np.searchsorted(GRID, best))
    chart = None
    if np.nanmax(overall.f1, initial=0) > 0:
        all_line = Line("all", GRID.tolist(), _until_last_score(overall), strong=True)
        chart = line_chart(
            [all_line, *_class_lines(analysis, all_line.x, [_until_last_score(curve) for curve in curves])],
            x_label="score threshold",
            y_label="F1",
            description=f"F1 by score threshold; the largest F1 of all objects is at a threshold of {best:.2f}.",
            x_range=(0, 1),
            y_range=(0, 1),
            marks=[(best, float(overall.f1[position]), f"{best:.2f}")],
        )
    html = render(
        "detection_threshold.html.j2",
        chart=chart,
        keys=_keys(analysis),
        threshold=best,
        f1=overall.f1[position],
        precision=overall.precision[position],
        recall=overall.recall[position],
        num_own=int(analysis.thresholds.own.sum()),
        num_classes=len(analysis.record.about.classes),
        min_objects=MIN_OBJECTS,
    )
    return Section("threshold", "Recommended score threshold", html)


def _curves(analysis: DetectionAnalysis) -> Section:
    recalls = np.linspace(0, 1, analysis.precision.shape[1]).tolist()
    panels: list[tuple[str, Markup]] = []
    for index, iou in ((0, 0.5), (5, 0.75)):
        known = np.flatnonzero(np.isfinite(analysis.precision[index]).all(axis=0))
        if not known.size:
            break
        precision = analysis.precision[index]
        mean_line = Line("mean", recalls, _until_zero(precision[:, known].mean(axis=1)), strong=True)
        chart = line_chart(
            [mean_line, *_class_lines(analysis, recalls, [_until_zero(column) for column in precision.T])],
            x_label="recall",
            y_label="precision",
            description=f"Precision by recall at an IoU of {iou}.",
            x_range=(0, 1),
            y_range=(0, 1),
        )
        panels.append((f"IoU {iou}", chart))
    html = render("detection_curves.html.j2", panels=panels, keys=_keys(analysis))
    return Section("curves", "Precision and recall", html)


def _errors(analysis: DetectionAnalysis) -> Section:
    rows = [(ERROR_NAMES[error.name], error.cost, error.count, _ERRORS[error.name]) for error in analysis.errors]
    known = np.isfinite([row[1] for row in rows]).all()
    chart = None
    if known and any(row[1] > 0 for row in rows):
        chart = bar_chart(
            [row[0] for row in rows],
            [round(100 * row[1], 1) for row in rows],
            x_label="points of AP50 to gain",
            description="Points of AP50 that correcting each type of error would gain.",
        )
    largest = max(rows, key=lambda row: row[1]) if chart else None
    html = render("detection_errors.html.j2", rows=rows, chart=chart, largest=largest)
    return Section("errors", "What goes wrong", html)


def _confusion(analysis: DetectionAnalysis) -> Section:
    names, counts = analysis.record.about.classes, analysis.confusion
    pairs = confused_pairs(counts[:-1, :-1])
    used = np.flatnonzero((counts.sum(axis=0) + counts.sum(axis=1)) > 0)
    used = np.union1d(used, [len(names)])
    html = render(
        "detection_confusion.html.j2",
        pairs=[
            (names[truth], names[found], count, count / counts[truth].sum()) for truth, found, count in pairs[:_PAIRS]
        ],
        rows=[[*names, "no object"][label] for label in used],
        columns=[[*names, "not found"][label] for label in used],
        values=counts[np.ix_(used, used)].tolist(),
        num_confused=sum(count for _, _, count in pairs),
        num_classes=len(names),
    )
    return Section("confusion", "Confused classes" if len(names) > 1 else "Found and missed objects", html)


def _objects(analysis: DetectionAnalysis) -> Section:
    def fates(chosen: np.ndarray) -> list[int]:
        known = analysis.fates[chosen & (analysis.fates >= 0)]
        return [len(known), *np.bincount(known, minlength=NEVER + 1).tolist()]

    sizes = [
        [name, analysis.ap_by_size[index], *fates(analysis.size_groups == index)] for index, name in enumerate(SIZES)
    ]
    labels = _listed(analysis) or [0]
    classes = [
        [analysis.record.about.classes[label], *fates(analysis.matches.object_label == label)] for label in labels
    ]
    html = render(
        "detection_objects.html.j2",
        sizes=sizes,
        classes=[row for row in classes if row[1]] if len(labels) > 1 else [],
        totals=fates(np.ones(len(analysis.fates), dtype=bool)),
    )
    return Section("objects", "What became of the objects", html)


def _class_lines(analysis: DetectionAnalysis, x: Sequence[float], y: Sequence[Sequence[float]]) -> list[Line]:
    """Return the lines of the listed classes; `y` has the values of all classes."""
    keys = zip(_listed(analysis), _keys(analysis), strict=True)
    return [Line(name, x, y[label], key=key) for label, (key, name) in keys]


def _until_last_score(curve: ThresholdCurve) -> list[float]:
    """Return F1 without the thresholds that no score reaches."""
    return np.where(np.isfinite(curve.precision), curve.f1, np.nan).tolist()


def _until_zero(precision: np.ndarray) -> list[float]:
    """Return precision without the recalls that are not reached, for which COCO's precision is 0."""
    return np.where(precision > 0, precision, np.nan).tolist()


def _listed(analysis: DetectionAnalysis) -> list[int]:
    """Return the classes with lines of their own in charts: those with objects, unless there is only one class."""
    labels = np.flatnonzero(analysis.matches.num_objects).tolist()
    return labels if len(analysis.record.about.classes) > 1 else []


def _keys(analysis: DetectionAnalysis) -> list[tuple[str, str]]:
    return [(f"class-{label}", analysis.record.about.classes[label]) for label in _listed(analysis)]
