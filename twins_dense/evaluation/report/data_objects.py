"""The report of a data set for detection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ...data.coco import CocoImage, is_instance
from ...data.duplicates import SplitImage
from ...data.suspects import KINDS, Suspect, corners
from ...errors import TwinsError
from ..coco import SIZE_LIMITS
from ..data_survey import ObjectSurvey, spread_examples
from .charts import histogram
from .data_parts import (
    NUM_LISTED,
    Finding,
    bins,
    class_findings,
    duplicate_findings,
    duplicates_section,
    first_of,
    images_section,
    leaks_headline,
    names_of,
    num_examples,
    overview_section,
    problem_findings,
    problems_section,
    relative,
    settings_section,
    total_headline,
)
from .formatting import number_of
from .gallery import Card, Shape, gallery, gallery_section
from .page import Headline, Section, render, render_page
from .pictures import contours_of

_FEW_OBJECTS = 10
_MOST_SHAPES = 200  # objects that are drawn on a card
_NUM_SUSPECTS = 60  # cards of suspicious annotations
_NUM_EMPTY = 12  # cards of images without objects
_MOST_BARS = 30
_GRID = 16  # cells of the map of positions, per side
_SMALL, _LARGE = SIZE_LIMITS


def object_page(survey: ObjectSurvey) -> str:
    """Return the report of a data set for detection as an HTML page."""
    folder = survey.folder
    num_images = {name: statistics.num_images for name, statistics in survey.statistics.items()}
    num_objects = {name: len(statistics.box_sizes) for name, statistics in survey.statistics.items()}
    findings = list(
        chain(
            problem_findings(survey.problems),
            duplicate_findings(survey.duplicates, num_images),
            class_findings(
                folder.classes,
                {name: statistics.class_counts for name, statistics in survey.statistics.items()},
                "objects",
                _FEW_OBJECTS,
            ),
            _object_findings(survey),
        )
    )
    num_suspects = sum(map(len, survey.suspects.values()))
    headlines = [
        total_headline("images", num_images),
        total_headline("objects", num_objects),
        leaks_headline(survey.duplicates, num_images),
        Headline(
            "suspicious annotations", num_suspects, explanation="Annotations that are worth a look.", percent=False
        ),
    ]
    masks = "boxes and masks" if folder.has_masks else "boxes"
    facts = [
        ("Folder", str(folder.root)),
        ("Layout", f"{folder.layout}, with {masks}"),
        ("Classes", f"{len(folder.classes):,}: {names_of(folder.classes)}"),
    ]
    notes = {
        SplitImage(str(image.path), name): number_of(sum(map(is_instance, image.annotations)), "object")
        for name, content in survey.contents.items()
        for image in content.images
    }
    sections = [
        overview_section(findings, *_splits(survey), folder),
        _classes(survey),
        *([_sizes(survey)] if any(num_objects.values()) else []),
        _images(survey),
        duplicates_section(survey.duplicates, folder, notes),
        _suspects(survey),
        _empty(survey),
        problems_section(survey.problems, folder),
        settings_section(survey.suggestion),
        _examples(survey),
    ]
    return render_page(f"Data set {folder.root.name}", facts, headlines, sections)


def _splits(survey: ObjectSurvey) -> tuple[Sequence[Any], Sequence[Any]]:
    columns = [("split", "text"), ("images", "count"), ("without objects", "count"), ("objects", "count")]
    columns += [("objects per image", "number"), ("classes", "count"), ("crowd regions", "count")]
    rows = []
    for name, statistics in survey.statistics.items():
        annotations = chain.from_iterable(image.annotations for image in survey.contents[name].images)
        num_crowds = sum(not is_instance(annotation) for annotation in annotations)
        counts = statistics.objects_per_image
        rows.append(
            [
                name,
                len(counts),
                int((counts == 0).sum()),
                int(counts.sum()),
                float(counts.mean()),
                int((statistics.class_counts > 0).sum()),
                num_crowds,
            ]
        )
    return columns, rows


def _object_findings(survey: ObjectSurvey) -> Iterator[Finding]:
    num_different = survey.num_annotated_differently()
    if num_different:
        verb = "has" if num_different == 1 else "have"
        text = f"{number_of(num_different, 'pair')} of identical images {verb} different annotations."
        yield Finding(text, "duplicates")
    kinds = Counter(suspect.kind for suspects in survey.suspects.values() for suspect in suspects)
    if kinds:
        text = ", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])
        yield Finding(f"{number_of(sum(kinds.values()), 'annotation')} may be wrong: {text}.", "suspects")
    for name, statistics in survey.statistics.items():
        num_empty = int((statistics.objects_per_image == 0).sum())
        if num_empty:
            yield Finding(
                f"{num_empty:,} of {number_of(statistics.num_images, 'image')} of {name} "
                f"{'has' if num_empty == 1 else 'have'} no objects.",
                "empty",
            )
    missing = survey.num_without_mask()
    total = sum(len(statistics.box_sizes) for statistics in survey.statistics.values())
    if 0 < missing < total:
        yield Finding(
            f"{missing:,} of {number_of(total, 'object')} {'has' if missing == 1 else 'have'} a box but no mask, so "
            "that Mask R-CNN cannot be trained.",
            "overview",
        )


def _classes(survey: ObjectSurvey) -> Section:
    columns = [("class", "text")]
    values: list[Any] = [survey.folder.classes]
    for name, statistics in survey.statistics.items():
        columns += [(f"{name} objects", "count"), (f"{name} images", "count"), (f"{name} share, %", "score")]
        shares = statistics.class_counts / max(statistics.class_counts.sum(), 1)
        values += [statistics.class_counts.tolist(), statistics.class_images.tolist(), shares.tolist()]
    rows = sorted(zip(*values, strict=True), key=lambda row: -row[1])
    return Section("classes", "Classes", render("data_classes.html.j2", columns=columns, rows=rows))


def _sizes(survey: ObjectSurvey) -> Section:
    """Return the section about the sizes, shapes and positions of objects, of all splits together."""
    sides = np.concatenate([np.sqrt(found.box_sizes.prod(axis=1)) for found in survey.statistics.values()])
    shapes = np.concatenate([found.box_sizes[:, 0] / found.box_sizes[:, 1] for found in survey.statistics.values()])
    labels = np.concatenate([_labels(survey, name) for name in survey.contents])
    size_chart = histogram(
        *bins(sides, log=True),
        x_label="square root of the box area in pixels",
        y_label="objects",
        description="Sizes of the objects",
        log_x=True,
    )
    shape_chart = histogram(
        *bins(shapes, log=True),
        x_label="width / height",
        y_label="objects",
        description="Shapes of the objects",
        log_x=True,
    )
    rows = []
    for label in np.unique(labels).tolist():
        chosen = labels == label
        low, middle, high = np.percentile(sides[chosen], [5, 50, 95])
        rows.append(
            [
                survey.folder.classes[label],
                int(chosen.sum()),
                middle,
                low,
                high,
                float(np.median(shapes[chosen])),
                float((sides[chosen] < _SMALL).mean()),
                float((sides[chosen] >= _LARGE).mean()),
            ]
        )
    rows.sort(key=lambda row: -row[1])
    small, large = float((sides < _SMALL).mean()), float((sides >= _LARGE).mean())
    html = render(
        "data_sizes.html.j2",
        charts=[
            (size_chart, "The size of each object: the square root of the area of its box, on a logarithmic scale."),
            (shape_chart, "The shape of each box: below 1 it is taller than wide."),
        ],
        shares=[
            (f"small (below {_SMALL} × {_SMALL} pixels)", small),
            ("medium", 1 - small - large),
            (f"large (from {_LARGE} × {_LARGE} pixels)", large),
        ],
        rows=rows,
        grid=_positions(survey),
    )
    return Section("sizes", "Sizes, shapes and positions of objects", html)


def _labels(survey: ObjectSurvey, split: str) -> np.ndarray:
    """Return the label of each object of a split, int64 (N,), in the order of the statistics."""
    content = survey.contents[split]
    label_of = {category_id: label for label, category_id in enumerate(content.category_ids)}
    annotations = chain.from_iterable(image.annotations for image in content.images)
    return np.array([label_of[entry["category_id"]] for entry in filter(is_instance, annotations)], dtype=np.int64)


def _positions(survey: ObjectSurvey) -> list[list[float]]:
    """Return how many objects have their centre in each cell of the image, divided by the largest number."""
    centres = [np.zeros((0, 2))]
    for content in survey.contents.values():
        for image in content.images:
            boxes = corners(filter(is_instance, image.annotations))
            centres.append((boxes[:, :2] + boxes[:, 2:]) / 2 / (image.width, image.height))
    x, y = np.concatenate(centres).clip(0, 1).T
    counts = np.histogram2d(y, x, bins=_GRID, range=((0, 1), (0, 1)))[0]
    return (counts / max(counts.max(), 1)).round(2).tolist()


def _images(survey: ObjectSurvey) -> Section:
    counts = np.concatenate([statistics.objects_per_image for statistics in survey.statistics.values()])
    step = -(-(int(counts.max()) + 1) // _MOST_BARS)
    edges = np.arange(0, counts.max() + step + 1, step)
    chart = histogram(
        edges.tolist(),
        np.histogram(counts, edges)[0].tolist(),
        x_label="objects in an image",
        y_label="images",
        description="Objects per image",
    )
    caption = f"The number of objects of each image; the largest is {counts.max():,}."
    sizes = np.concatenate([statistics.image_sizes for statistics in survey.statistics.values()])
    return images_section(sizes, [(chart, caption)])


def _examples(survey: ObjectSurvey) -> Section:
    images, splits, present = [], [], []
    for name, content in survey.contents.items():
        for image in content.images:
            used = {annotation["category_id"] for annotation in image.annotations if is_instance(annotation)}
            images.append(image)
            splits.append(name)
            present.append([category_id in used for category_id in content.category_ids])
    chosen = spread_examples(np.array(present), num_examples(len(survey.folder.classes)))
    cards = [_card(survey, splits[index], images[index]) for index in chosen]
    limit = f"{len(cards):,} of {number_of(len(images), 'image')} are shown." if len(cards) < len(images) else ""
    text = "Images of every class, as far as the limit allows, with all their annotations. Check some of each class."
    return gallery_section(
        "examples",
        "Examples",
        cards,
        text=f"{text} {limit}",
        empty="No image has an object.",
        filters=[("class", survey.folder.classes), ("split", list(survey.contents))],
    )


def _card(survey: ObjectSurvey, split: str, image: CocoImage, suspects: Sequence[Suspect] = ()) -> Card:
    """Return the card of an image with its largest objects, or only those of the suspects."""
    content = survey.contents[split]
    name_of = dict(zip(content.category_ids, content.class_names, strict=True))
    objects = [annotation for annotation in image.annotations if is_instance(annotation)]
    counts = Counter(name_of[annotation["category_id"]] for annotation in objects)
    if suspects:
        objects = [entry for it in suspects for entry in (it.annotation, it.other) if entry is not None]
        objects = list({entry["id"]: entry for entry in objects}.values())
        text = "; ".join(f"{it.kind}: {name_of[it.annotation['category_id']]}, {it.detail}" for it in suspects[:5])
        tags = [split, *(it.kind for it in suspects), *(name_of[entry["category_id"]] for entry in objects)]
    else:
        text = ", ".join(f"{count} × {name}" for name, count in counts.most_common(5)) or "no objects"
        tags = [split, *counts]
    objects = sorted(objects, key=lambda entry: -entry["bbox"][2] * entry["bbox"][3])[:_MOST_SHAPES]
    boxes = corners(objects)
    shapes = [
        Shape(box, "annotation", name_of[entry["category_id"]], _contours(entry, image))
        for entry, box in zip(objects, boxes.tolist(), strict=True)
    ]
    return Card(str(image.path), relative(image.path, survey.folder), text, tags, shapes)


def _contours(annotation: dict[str, Any], image: CocoImage) -> Sequence[np.ndarray]:
    try:
        return contours_of(annotation.get("segmentation"), image.height, image.width)
    except TwinsError:
        return ()


def _suspects(survey: ObjectSurvey) -> Section:
    everything = [(name, suspect) for name, suspects in survey.suspects.items() for suspect in suspects]
    counts = Counter(suspect.kind for _, suspect in everything)
    name_of = {
        name: dict(zip(content.category_ids, content.class_names, strict=True))
        for name, content in survey.contents.items()
    }
    # The strongest suspects of each kind come first, so that no kind hides the others.
    rank: Counter[str] = Counter()
    ordered = []
    for name, suspect in sorted(everything, key=lambda entry: -entry[1].strength):
        ordered.append((rank[suspect.kind], list(KINDS).index(suspect.kind), name, suspect))
        rank[suspect.kind] += 1
    ordered.sort(key=lambda entry: entry[:2])
    by_image: dict[tuple[str, int], list[Suspect]] = {}
    for _, _, name, suspect in ordered:
        by_image.setdefault((name, suspect.image.id), []).append(suspect)
    cards = [
        _card(survey, name, suspects[0].image, suspects)
        for (name, _), suspects in list(by_image.items())[:_NUM_SUSPECTS]
    ]
    rows = [
        (
            relative(it.image.path, survey.folder),
            name,
            it.annotation["id"],
            name_of[name][it.annotation["category_id"]],
            it.kind,
            it.detail,
        )
        for _, _, name, it in ordered[:NUM_LISTED]
    ]
    html = render(
        "data_suspects.html.j2",
        kinds=[(kind, counts[kind], text) for kind, text in KINDS.items()],
        total=len(everything),
        rows=rows,
        limit_shown=first_of(len(cards), len(by_image), "images"),
        limit_listed=first_of(len(rows), len(everything), "annotations"),
        gallery=gallery(
            "suspects-gallery",
            cards,
            filters=[("kind", list(KINDS)), ("class", survey.folder.classes), ("split", list(survey.contents))],
        )
        if cards
        else "",
    )
    return Section("suspects", "Suspicious annotations", html)


def _empty(survey: ObjectSurvey) -> Section:
    empty = [
        (name, image)
        for name, content in survey.contents.items()
        for image in content.images
        if not any(map(is_instance, image.annotations))
    ]
    cards = [_card(survey, name, image) for name, image in empty[:_NUM_EMPTY]]
    text = "These images teach a detector what is not an object. If they show objects, annotations are missing."
    return gallery_section(
        "empty",
        "Images without objects",
        cards,
        text=f"{text} {first_of(len(cards), len(empty), 'images')}",
        empty="Every image has an object.",
        filters=[("split", list(survey.contents))],
    )
