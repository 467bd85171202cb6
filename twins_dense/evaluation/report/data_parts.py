"""Parts of the report of a data set that do not depend on the task: duplicates, problems, images and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.check import suggested_options
from ...data.duplicates import Kind, Pair, SplitImage, groups_of, leaks
from ...data.layouts import DataFolder
from ...data.statistics import Suggestion, name_warnings
from .charts import histogram
from .formatting import number_of, shortened
from .page import Headline, Section, render
from .pictures import thumbnail

NUM_LISTED = 50  # rows of a table
_EXAMPLES_PER_CLASS, _FEWEST_EXAMPLES, _MOST_EXAMPLES = 4, 24, 60
_NUM_PAIRS = 20  # pairs of duplicates that are shown as pictures
_NUM_SIZES = 10
_LONGEST = 40  # characters of a name in a sentence
_PAIR_SIDE = 320  # pixels
_KINDS: Mapping[Kind, str] = {
    "same file": "the same file",
    "same pixels": "the same pixels",
    "near": "nearly the same picture",
}


@dataclass(frozen=True)
class Finding:
    """Something that a user should know before training.

    Attributes:
        text: One sentence.
        section: Identifier of the section that shows more.
    """

    text: str
    section: str


def num_examples(num_classes: int) -> int:
    """Return the largest number of cards of the gallery of examples."""
    return min(max(_EXAMPLES_PER_CLASS * num_classes, _FEWEST_EXAMPLES), _MOST_EXAMPLES)


def first_of(shown: int, total: int, nouns: str) -> str:
    """Return a sentence if only a part is shown, such as "The first 50 of 1,234 images are shown.", else ""."""
    return f"The first {shown:,} of {total:,} {nouns} are shown." if shown < total else ""


def names_of(names: Sequence[str], limit: int = 12) -> str:
    """Return names separated by commas, long ones shortened, and the number of those beyond the limit."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shortened(name, _LONGEST) for name in names[:limit]) + more


def relative(path: str | Path, folder: DataFolder) -> str:
    """Return the path of a file of a data set relative to its folder, or as it is if the file is elsewhere."""
    path = Path(path)
    return path.relative_to(folder.root).as_posix() if path.is_relative_to(folder.root) else path.as_posix()


def total_headline(noun: str, counts: Mapping[str, int]) -> Headline:
    """Return the headline of the number of something in all splits together, explained by the number in each split."""
    parts = " + ".join(f"{count:,} {split}" for split, count in counts.items())
    return Headline(noun, sum(counts.values()), explanation=f"{parts}.", percent=False)


def leaks_headline(pairs: Sequence[Pair], splits: Iterable[str]) -> Headline:
    """Return the headline of the number of images that are also in the training split."""
    leaked = {image for split in splits if split != "train" for image in leaks(pairs, split)}
    text = "Images of other splits that show the same as training images."
    return Headline("leaked images", len(leaked), explanation=text, percent=False)


def overview_section(
    findings: Sequence[Finding], columns: Sequence[Any], rows: Sequence[Any], folder: DataFolder
) -> Section:
    """Return the section that says what needs attention, and what each split contains."""
    html = render("data_overview.html.j2", findings=findings, columns=columns, rows=rows, notes=folder.notes)
    return Section("overview", "What to look at", html)


def images_section(sizes: np.ndarray, more: Sequence[Any] = ()) -> Section:
    """Return the section about the sizes of images.

    Args:
        sizes: Width and height of each image in pixels, int64 (N, 2).
        more: Further charts with their captions.
    """
    counted = Counter((int(width), int(height)) for width, height in sizes)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rows = [(f"{width} × {height}", count, count / len(sizes)) for (width, height), count in ordered[:_NUM_SIZES]]
    short = sizes.min(axis=1)
    chart = histogram(
        *bins(short, log=False), x_label="short side in pixels", y_label="images", description="Sizes of the images"
    )
    html = render(
        "data_images.html.j2",
        rows=rows,
        limit=first_of(len(rows), len(counted), "sizes"),
        same=len(counted) == 1,
        charts=[*([(chart, "The short side of each image.")] if len(counted) > _NUM_SIZES else []), *more],
    )
    return Section("images", "Images", html)


def bins(values: np.ndarray, *, log: bool) -> tuple[list[float], list[int]]:
    """Return the edges and the counts of a histogram of positive numbers; two bins per octave if `log` is true."""
    if log:
        low, high = np.floor(2 * np.log2(values.min())), np.floor(2 * np.log2(values.max())) + 1
        edges = 2.0 ** (np.arange(low, high + 1) / 2)
    else:
        edges = np.histogram_bin_edges(values, bins=min(30, max(len(np.unique(values)), 1)))
    return edges.tolist(), np.histogram(values, edges)[0].tolist()


def class_findings(classes: Sequence[str], counts: Mapping[str, np.ndarray], nouns: str, few: int) -> Iterator[Finding]:
    """Yield findings about classes that are missing in a split, or rare.

    Args:
        classes: Names of the classes.
        counts: For each split, the number of objects or images of each class, int64 (K,).
        nouns: What is counted, such as "objects".
        few: Smallest number for training that is not rare.
    """
    train, val = counts["train"], counts["val"]

    def of(chosen: np.ndarray, text: str, text_many: str) -> Iterator[Finding]:
        """Yield the finding about the chosen classes, bool (K,), if there are any."""
        names = [classes[label] for label in np.flatnonzero(chosen).tolist()]
        if names:
            what = text if len(names) == 1 else text_many
            yield Finding(f"{number_of(len(names), 'class')} {what}: {names_of(names)}.", "classes")

    total = sum(counts.values(), np.zeros_like(train))
    if not train.any():
        yield Finding(f"The training images have no {nouns} of any class.", "classes")
    for name, other in counts.items():
        if name != "train":
            yield from of((other > 0) & (train == 0), f"has {nouns} only in {name}", f"have {nouns} only in {name}")
    unscored = f"no {nouns} in val, so that no score says how well"
    yield from of((train > 0) & (val == 0), f"has {unscored} it is found", f"have {unscored} they are found")
    if total.any():
        yield from of(total == 0, f"has no {nouns} at all", f"have no {nouns} at all")
    rare = f"fewer than {few} training {nouns}"
    yield from of((train > 0) & (train < few), f"has {rare}", f"have {rare}")
    for warning in name_warnings(classes):
        text = warning.removeprefix("warning: ")
        yield Finding(f"{text[:1].upper()}{text[1:]}.", "classes")


def duplicate_findings(pairs: Sequence[Pair], num_images: Mapping[str, int]) -> Iterator[Finding]:
    """Yield findings about images that occur more than once, leaks between splits first."""
    splits = list(num_images)
    for index, split in enumerate(splits):
        for source in splits[:index]:
            leaked = len(leaks(pairs, split, source))
            if leaked:
                verb = "shows" if leaked == 1 else "show"
                yield Finding(
                    f"{leaked:,} of {number_of(num_images[split], 'image')} of {split} {verb} the same as images of "
                    f"{source}: scores will look better than they are.",
                    "duplicates",
                )
    for split in splits:
        within = [pair for pair in pairs if not pair.is_leak and pair.first.split == split]
        repeated = sum(len(group) - 1 for group in groups_of(within))
        if repeated:
            verb = "repeats another one" if repeated == 1 else "repeat others"
            yield Finding(f"{number_of(repeated, 'image')} of {split} {verb}.", "duplicates")


def duplicates_section(pairs: Sequence[Pair], folder: DataFolder, notes: Mapping[SplitImage, str]) -> Section:
    """Return the section about images that occur more than once.

    Args:
        pairs: The result of `find_duplicates`.
        folder: The data set.
        notes: Text about images, such as "3 objects".
    """

    def view(image: SplitImage) -> dict[str, str]:
        return {"split": image.split, "file": relative(image.path, folder), "note": notes.get(image, "")}

    shown = [
        {
            "leak": pair.is_leak,
            "kind": _KINDS[pair.kind],
            "images": [
                {**view(image), "uri": uri, "width": width, "height": height}
                for image in (pair.first, pair.second)
                for uri, width, height in [thumbnail(image.path, long_side=_PAIR_SIDE)]
            ],
        }
        for pair in pairs[:_NUM_PAIRS]
    ]
    rows = [
        (
            relative(pair.first.path, folder),
            pair.first.split,
            relative(pair.second.path, folder),
            pair.second.split,
            _KINDS[pair.kind],
            pair.correlation,
        )
        for pair in pairs[: 4 * NUM_LISTED]
    ]
    counts = Counter((pair.is_leak, pair.kind) for pair in pairs)
    summary = [
        ("between splits" if is_leak else "within a split", text, counts[is_leak, kind])
        for is_leak in (True, False)
        for kind, text in _KINDS.items()
        if counts[is_leak, kind]
    ]
    html = render(
        "data_duplicates.html.j2",
        pairs=shown,
        rows=rows,
        summary=summary,
        limit_shown=first_of(len(shown), len(pairs), "pairs"),
        limit_listed=first_of(len(rows), len(pairs), "pairs"),
    )
    return Section("duplicates", "Duplicates and leaks", html)


def problem_findings(problems: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield a finding for each split with images or annotations that cannot be used."""
    for split, lines in problems.items():
        if lines:
            yield Finding(
                f"{number_of(len(lines), 'problem')} of {split}: images or annotations cannot be used.", "problems"
            )


def problems_section(problems: Mapping[str, Sequence[str]], folder: DataFolder) -> Section:
    """Return the section about images and annotations that cannot be used."""
    rows = [("all", line) for line in folder.problems]
    rows += [(split, line.replace(f"{folder.root}/", "")) for split, lines in problems.items() for line in lines]
    html = render("data_problems.html.j2", rows=rows[:NUM_LISTED], limit=first_of(NUM_LISTED, len(rows), "problems"))
    return Section("problems", "Images and annotations that cannot be used", html)


def settings_section(suggestion: Suggestion | None) -> Section:
    """Return the section with the settings that suit the data."""
    rows = list(suggested_options(suggestion)) if suggestion else []
    return Section("settings", "Suggested settings", render("data_settings.html.j2", rows=rows))
