"""Describe and check a recognised folder of images and annotations."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import TwinsError
from .coco import load_coco
from .label_folders import IGNORED, count_values, spread
from .label_maps import Problem, find_problems, summarise
from .layouts import DataFolder, Split
from .problems import DataError
from .statistics import (
    Suggestion,
    class_table,
    describe_objects,
    describe_sizes,
    measure_objects,
    name_warnings,
    shorten,
    suggest,
    suggest_segmentation,
)

_NUM_SAMPLED = 200  # label maps that statistics are computed from, evenly spread


def describe_folder(data: DataFolder) -> Iterator[str]:
    """Yield lines that say what was recognised, what was assumed, and what was left out."""
    sizes = " + ".join(f"{split.num_images:,} {name}" for name, split in data.splits.items())
    content = "label maps" if data.task == "segmentation" else "boxes and masks" if data.has_masks else "boxes"
    classes = "1 class" if len(data.classes) == 1 else f"{len(data.classes)} classes"
    yield f"{data.layout} data with {content}: {sizes} images, {classes} ({shorten(data.classes)})"
    yield from data.notes
    if data.problems:
        yield f"left out {len(data.problems)}:"
        yield from DataError("", data.problems).first_problems()


def describe_contents(data: DataFolder, *, size: int | None = None) -> tuple[list[str], Suggestion]:
    """Return lines with the statistics of the training images, and the settings that suit them.

    `size` is the short side of images if it has been chosen already, for detectors.
    """
    if data.task == "segmentation":
        return _describe_labels(data)
    train, val = measure_objects(data), measure_objects(data, "val")
    suggestion = suggest(train, val, size=size)
    assert suggestion.max_size is not None
    lines = list(describe_objects(train, size=suggestion.size, max_size=suggestion.max_size))
    if not val.objects_per_image.any():
        lines.append("warning: the validation images have no objects, so that every score will be meaningless")
    return lines, suggestion


def describe_suggestion(suggestion: Suggestion) -> Iterator[str]:
    """Yield one line per suggested setting, as an option of `train`, with its reason."""
    rows = list(suggested_options(suggestion))
    width = max(len(option) for option, _ in rows)
    for option, reason in rows:
        yield f"{option:<{width}}  {reason}"


def suggested_options(suggestion: Suggestion) -> Iterator[tuple[str, str]]:
    """Yield each suggested setting as an option of `train`, and its reason."""
    anchor_sizes = suggestion.anchor_sizes
    values = {
        "recipe": suggestion.recipe,
        "epochs": suggestion.epochs,
        "batch": suggestion.batch,
        "size": suggestion.size,
        "max_dets": suggestion.max_dets,
        "anchor_sizes": None if anchor_sizes is None else ",".join(map(str, anchor_sizes)),
    }
    for name, value in values.items():
        if value is not None:
            yield f"--{name.replace('_', '-')} {value}", suggestion.reasons[name]


def check_folder(
    data: DataFolder, *, skip_bad: bool = False, strict: bool = False, allow_outside: bool = False
) -> Iterator[str]:
    """Check all images and annotations, and yield one line per split, and one per image or annotation left out.

    Raises:
        DataError: For the first split with problems, unless `skip_bad` is true.
    """
    for name, split in data.splits.items():
        problems = _check_split(data, split, skip_bad, strict, allow_outside)
        left_out = f", left out {len(problems)}:" if problems else ""
        yield f"{name}: checked {split.num_images:,} images{left_out}"
        yield from DataError("", problems).first_problems()


def _check_split(data: DataFolder, split: Split, skip_bad: bool, strict: bool, allow_outside: bool) -> tuple[str, ...]:
    if split.ann_file is not None:
        return load_coco(
            split.ann_file, split.image_dir, skip_bad=skip_bad, strict=strict, allow_outside=allow_outside
        ).problems
    found = find_label_problems(data, split)
    problems = [problem for problem in found if problem is not None]
    if problems and not skip_bad:
        lines = "; ".join(summarise(problems))
        raise DataError(f"{split.image_dir}: {lines}. Fix the files, or add --skip-bad", list(map(str, problems)))
    if len(problems) == len(found):
        raise TwinsError(f"{split.image_dir}: no image is left: {'; '.join(summarise(problems))}")
    return tuple(map(str, problems))


def find_label_problems(data: DataFolder, split: Split) -> list[Problem | None]:
    """Return the first problem of each image of a split and its label map, in the order of `image_names`."""
    images = [split.image_dir / f"{name}{split.image_suffix}" for name in split.image_names()]
    pairs = [(str(image), str(label)) for image, label in zip(images, split.label_paths(), strict=True)]
    return find_problems(pairs, {*range(len(data.classes) + data.reduce_zero_label), IGNORED})


def _describe_labels(data: DataFolder) -> tuple[list[str], Suggestion]:
    train = data.splits["train"]
    paths = spread(train.label_paths(), _NUM_SAMPLED)
    counts, sizes = count_values(paths)
    first = int(data.reduce_zero_label)
    pixels = counts[:, first : first + len(data.classes)]
    shares = 100 * pixels.sum(axis=0) / max(counts.sum(), 1)
    columns = {"% of pixels": shares.tolist(), "images": (pixels > 0).sum(axis=0).tolist()}
    lines = [describe_sizes(sizes), *class_table(data.classes, columns), *name_warnings(data.classes)]
    unused = [name for name, share in zip(data.classes, shares, strict=True) if not share]
    if unused:
        number = "1 class never occurs" if len(unused) == 1 else f"{len(unused)} classes never occur"
        lines.append(f"warning: {number} in the training images: {shorten(unused)}")
    lines.append(f"pixels without a class: {100 - shares.sum():.1f} %")
    if len(paths) < train.num_images:
        lines.append(f"These numbers are from {len(paths)} of the {train.num_images:,} label maps.")
    return lines, suggest_segmentation(train.num_images, sizes)
