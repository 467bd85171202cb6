"""The report of a data set for segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ...data.image_files import open_image
from ...data.label_folders import IGNORED
from ...data.label_maps import class_palette
from ..data_survey import LabelSplitSurvey, LabelSurvey, spread_examples
from .data_parts import (
    Finding,
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
from .gallery import Card, Layer, gallery_section
from .page import Headline, Section, render, render_page

_FEW_IMAGES = 5
_NUM_EMPTY = 12  # cards of images without a class


def label_page(survey: LabelSurvey) -> str:
    """Return the report of a data set for segmentation as an HTML page."""
    folder = survey.folder
    num_images = {name: split.num_images for name, split in survey.splits.items()}
    findings = list(
        chain(
            problem_findings(survey.problems),
            duplicate_findings(survey.duplicates, num_images),
            class_findings(
                folder.classes,
                {name: (survey.class_pixels(name) > 0).sum(axis=0) for name in survey.splits},
                "images",
                _FEW_IMAGES,
            ),
            _empty_findings(survey),
        )
    )
    counts = sum(split.counts.sum(axis=0) for split in survey.splits.values())
    labelled = sum(int(survey.class_pixels(name).sum()) for name in survey.splits)
    headlines = [
        total_headline("images", num_images),
        Headline("classes", len(folder.classes), percent=False),
        Headline("labelled pixels", labelled / max(int(np.sum(counts)), 1), explanation="Pixels that have a class."),
        leaks_headline(survey.duplicates, num_images),
    ]
    values = f"{survey.first_value} to {survey.first_value + len(folder.classes) - 1}"
    facts = [
        ("Folder", str(folder.root)),
        ("Layout", f"{folder.layout}, with label maps"),
        ("Classes", f"{len(folder.classes):,}, with the values {values}: {names_of(folder.classes)}"),
    ]
    sections = [
        overview_section(findings, *_splits(survey), folder),
        _classes(survey),
        _values(survey),
        images_section(np.concatenate([split.sizes for split in survey.splits.values()])),
        duplicates_section(survey.duplicates, folder, {}),
        _empty(survey),
        problems_section(survey.problems, folder),
        settings_section(survey.suggestion),
        _examples(survey),
    ]
    return render_page(f"Data set {folder.root.name}", facts, headlines, sections)


def _splits(survey: LabelSurvey) -> tuple[Sequence[Any], Sequence[Any]]:
    columns = [("split", "text"), ("images", "count"), ("counted label maps", "count"), ("classes", "count")]
    columns += [("without a class", "count"), ("labelled pixels, %", "score")]
    rows = []
    for name, split in survey.splits.items():
        pixels = survey.class_pixels(name)
        rows.append(
            [
                name,
                split.num_images,
                len(split.counts),
                int((pixels.sum(axis=0) > 0).sum()),
                int((pixels.sum(axis=1) == 0).sum()),
                float(pixels.sum() / max(split.counts.sum(), 1)),
            ]
        )
    return columns, rows


def _empty_findings(survey: LabelSurvey) -> Iterator[Finding]:
    for name in survey.splits:
        found, total = len(_without_class(survey, name)), len(survey.splits[name].counts)
        if found:
            verb = "has" if found == 1 else "have"
            yield Finding(
                f"{found:,} of {number_of(total, 'label map')} of {name} {verb} no pixel with a class.", "empty"
            )


def _without_class(survey: LabelSurvey, split: str) -> list[int]:
    return np.flatnonzero(survey.class_pixels(split).sum(axis=1) == 0).tolist()


def _classes(survey: LabelSurvey) -> Section:
    columns = [("class", "text"), ("value", "count")]
    labels = range(survey.first_value, survey.first_value + len(survey.folder.classes))
    values: list[Any] = [survey.folder.classes, labels]
    for name in survey.splits:
        pixels = survey.class_pixels(name)
        columns += [(f"{name} pixels, %", "score"), (f"{name} images", "count"), (f"{name} images, %", "score")]
        in_images = (pixels > 0).sum(axis=0)
        shares = pixels.sum(axis=0) / max(pixels.sum(), 1)
        values += [shares.tolist(), in_images.tolist(), (in_images / len(pixels)).tolist()]
    rows = sorted(zip(*values, strict=True), key=lambda row: -row[2])
    html = render("data_classes.html.j2", columns=columns, rows=rows)
    return Section("classes", "Classes", html)


def _values(survey: LabelSurvey) -> Section:
    """Return the section about the values of label maps that mean no class."""
    first, num_classes = survey.first_value, len(survey.folder.classes)
    rows = []
    for value in (*range(first), *range(first + num_classes, 256)):
        for name, split in survey.splits.items():
            pixels, images = int(split.counts[:, value].sum()), int((split.counts[:, value] > 0).sum())
            if images:
                rows.append([value, name, pixels / max(int(split.counts.sum()), 1), images, images / len(split.counts)])
    html = render(
        "data_values.html.j2", rows=rows, first=first, last=first + num_classes - 1, ignored=IGNORED, zero=bool(first)
    )
    return Section("values", "Ignored pixels", html)


def _examples(survey: LabelSurvey) -> Section:
    rows = [(name, index) for name, split in survey.splits.items() for index in range(len(split.counts))]
    present = np.concatenate([survey.class_pixels(name) > 0 for name in survey.splits])
    chosen = [rows[index] for index in spread_examples(present, num_examples(len(survey.folder.classes)))]
    limit = f"{len(chosen):,} of {number_of(len(rows), 'image')} are shown." if len(chosen) < len(rows) else ""
    text = "Images of every class, as far as the limit allows, with their label maps. Check some of each class."
    return gallery_section(
        "examples",
        "Examples",
        [_card(survey, *place) for place in chosen],
        text=f"{text} {limit}",
        empty="No label map has a class.",
        filters=_filters(survey),
    )


def _empty(survey: LabelSurvey) -> Section:
    places = [(name, index) for name in survey.splits for index in _without_class(survey, name)]
    cards = [_card(survey, *place) for place in places[:_NUM_EMPTY]]
    limit = first_of(len(cards), len(places), "images")
    text = "All pixels of these label maps are ignored, so that nothing can be learned from them."
    return gallery_section(
        "empty",
        "Images without a class",
        cards,
        text=f"{text} {limit}",
        empty="Every label map has a pixel with a class.",
        filters=_filters(survey),
    )


def _filters(survey: LabelSurvey) -> list[tuple[str, Sequence[str]]]:
    return [("class", survey.folder.classes), ("split", list(survey.splits))]


def _card(survey: LabelSurvey, split: str, index: int) -> Card:
    found: LabelSplitSurvey = survey.splits[split]
    with open_image(found.labels[index]) as file:
        label_map = np.asarray(file, dtype=np.uint8)
    names = survey.folder.classes
    # Values that mean no class become 255, which is transparent.
    indices = np.where(label_map >= survey.first_value, label_map - np.uint8(survey.first_value), 255).astype(np.uint8)
    indices[indices >= len(names)] = 255
    pixels = survey.class_pixels(split)[index]
    largest = [label for label in np.argsort(-pixels, kind="stable").tolist() if pixels[label]]
    total = int(found.counts[index].sum())
    text = ", ".join(f"{names[label]} {100 * pixels[label] / total:.0f}\u00a0%" for label in largest[:4]) or "no class"
    layer = Layer("annotation", indices, class_palette(len(names)), names)
    image = found.images[index]
    tags = [split, *(names[label] for label in largest)]
    return Card(str(image), relative(image, survey.folder), text, tags, layers=[layer])
