"""COCO files with any value in any field that is read: an error of one line, or data that every consumer can use."""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twins_dense.data.coco import load_coco, read_image_names, read_instances
from twins_dense.data.coco_masks import decode_segmentation, segmentation_problem
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 47, 31
# Values of each JSON type, and numbers that are special for Python, NumPy or C.
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.0, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e-320, 1e12, 1e308, -1e308),
    *(2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, "", "0", "1", "400", "a\nb", "\ud800", "o" * 100, "n" * 300),
    *([], [0], [1], [[]], [[[]]], {}, {"": 0}, {"counts": [], "size": []}, {"counts": "", "size": [HEIGHT, WIDTH]}),
]
VALID = {
    "images": [
        {"id": 2, "file_name": "two.png", "width": WIDTH, "height": HEIGHT},
        {"id": 5, "file_name": "five.png", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {
            "id": 10 * image_id + k,
            "image_id": image_id,
            "category_id": 3,
            "bbox": [5.0, 7.0, 11.0, 13.0],
            "area": 143.0,
            "iscrowd": 0,
            "segmentation": [[5.0, 7.0, 16.0, 7.0, 16.0, 20.0, 5.0, 20.0]],
        }
        for image_id in (2, 5)
        for k in (1, 2)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for entry in VALID["images"]:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / str(entry["file_name"]))
    return folder


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value below a node of JSON data."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [path] if path else []
    for key, value in items:
        found += places(value, (*path, key))
    return found


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content: Any = json.loads(json.dumps(VALID))
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return content


def load(content: Any, images: Path, folder: Path, **options: Any) -> Any:
    """Load a file in every way; errors are of one line and can be printed."""
    ann_file = folder / "a.json"
    ann_file.write_text(json.dumps(content))
    data = None
    for read in (read_image_names, read_instances, lambda path: load_coco(path, images, **options)):
        try:
            data = read(ann_file)
        except TwinsError as error:
            message = str(error).encode().decode()
            assert "\n" not in message and str(ann_file) in message and len(message) < 1000
            data = None
    return data


# Twice the number of places in the first image and its first annotation, and in the categories.
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_any_value_in_any_place(images: Path, tmp_path: Path, value: Any) -> None:
    for path in places(VALID):
        if path[:2] in (("images", 1), ("annotations", 1), ("annotations", 3)):
            continue
        data = load(changed(path, value), images, tmp_path, skip_bad=True)
        for image in data.images if data is not None else ():
            assert 0 <= image.id < 2**63
            for annotation in image.annotations:
                assert annotation.get("iscrowd", 0) in (0, 1)
                area = annotation.get("area")
                assert area is None or 0 <= area <= 1e10
                assert np.isfinite(np.array(annotation["bbox"], np.float32)).all()
                if annotation.get("segmentation"):
                    assert decode_segmentation(annotation["segmentation"], HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("crowd", [None, "0", "1", [], [1], {}, 2, -1, 0.0, 1.0, 0.5, math.nan])
def test_iscrowd(images: Path, tmp_path: Path, crowd: Any) -> None:
    path = ("annotations", 2, "iscrowd")
    (problem,) = load(changed(path, crowd), images, tmp_path, skip_bad=True).problems
    assert problem.startswith("annotation 51 of image five.png: iscrowd ") and problem.endswith(" is neither 0 nor 1")
    assert load(changed(path, crowd), images, tmp_path) is None


@pytest.mark.parametrize("area", [-1, -1e-9, "400", "", [], [400], {}, True, math.nan, math.inf, 1.1e10, 10**400])
def test_area(images: Path, tmp_path: Path, area: Any) -> None:
    path = ("annotations", 2, "area")
    (problem,) = load(changed(path, area), images, tmp_path, skip_bad=True).problems
    assert problem.startswith("annotation 51 of image five.png: area ") and "is not a number from 0 to 1e+10" in problem
    assert load(changed(path, area), images, tmp_path) is None


def test_a_missing_area_is_computed() -> None:
    from twins_dense.evaluation.coco import evaluate_coco

    for area in (None, "missing"):
        truth = changed(("annotations", 0, "area"), area)
        if area == "missing":
            del truth["annotations"][0]["area"]
        found = [{**entry, "score": 0.9, "bbox": entry["bbox"]} for entry in truth["annotations"]]
        metrics = evaluate_coco(truth, found, iou_types=("bbox",))
        assert metrics["bbox_AP"] == pytest.approx(1)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"images": [], "n": ' + "1" * 5000 + "}"])
def test_json_that_python_refuses(images: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    for read in (read_image_names, read_instances, lambda path: load_coco(path, images)):
        with pytest.raises(TwinsError, match=r"^\S*a\.json: (its JSON is nested|cannot be read \(Exceeds)[^\n]*$"):
            read(tmp_path / "a.json")


BOX_OR_POLYGON = ["bbox", "segmentation"]


@pytest.mark.parametrize("size", [1e4, 1e7, 1e12, 2.0**63, 1e308, -1e4, -1e7, -1e12, -(2.0**63), -1e308, 10**400])
@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("field", BOX_OR_POLYGON)
def test_coordinates_far_outside(images: Path, tmp_path: Path, field: str, position: int, size: Any) -> None:
    path = ("annotations", 0, field, position) if field == "bbox" else ("annotations", 0, field, 0, position)
    data = load(changed(path, size), images, tmp_path, skip_bad=True)
    assert len(data.problems) == 1 and f": {field} " in data.problems[0]
    assert data.images[0].annotations == (VALID["annotations"][1],)


def test_coordinates_a_little_outside(images: Path, tmp_path: Path) -> None:
    """Real data has shapes that extend beyond the image, such as the tiles of large images."""
    polygon = [[-300.5, -200.0, 500.0, -200.0, 500.0, 400.0, -300.5, 400.0]]
    content = changed(("annotations", 0, "segmentation"), polygon)
    content["annotations"][0]["bbox"] = [-300.5, -200.0, 800.5, 600.0]
    assert load(content, images, tmp_path).problems == ()
    assert decode_segmentation(polygon, HEIGHT, WIDTH).all()


def test_a_zigzag_of_many_long_edges() -> None:
    """pycocotools takes memory for every pixel along the edges."""
    zigzag = [value for index in range(20_000) for value in (40.0 * (index % 2), index / 1000)]
    problem = segmentation_problem([zigzag], HEIGHT, WIDTH)
    assert problem is not None and "at most 47000 are possible" in problem
    assert segmentation_problem([zigzag[:2000]], HEIGHT, WIDTH) is None


@pytest.mark.parametrize("letter", ["o", "O", "P", "0", "/", "\x7f", "é"])
def test_absurd_run_lengths_take_no_time(letter: str) -> None:
    start = time.process_time()
    assert segmentation_problem({"counts": letter * 1_000_000, "size": [HEIGHT, WIDTH]}, HEIGHT, WIDTH) is not None
    assert time.process_time() - start < 5  # it took more than a minute


# Decodes each segmentation that the check accepts by pycocotools, with 2 GB of memory.
_DECODE = """
import json, sys
from pycocotools import mask
from twins_dense.data.coco_masks import decode_segmentation, segmentation_problem
accepted = 0
for line in sys.stdin:
    height, width, segmentation = json.loads(line)
    if segmentation_problem(segmentation, height, width) is None:
        decoded = decode_segmentation(segmentation, height, width)
        assert decoded.shape == (height, width) and decoded.max() <= 1
        mask.area(mask.frPyObjects(segmentation, height, width) if not isinstance(segmentation, dict)
                  or isinstance(segmentation["counts"], list) else segmentation)
        accepted += 1
print(accepted)
"""


def _segmentations(seed: int, count: int) -> list[str]:
    """Return lines of JSON with heights, widths and segmentations, valid ones and others."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        height, width = rng.choice([1, 2, 31, 400]), rng.choice([1, 3, 47, 500])

        def number(limit: int) -> float:
            scale = rng.choice([1, 1, 1, 1, 20, 1000, 1e7, 1e20])
            return rng.choice([rng.uniform(-0.1, 1.1) * limit * scale, float(rng.randrange(limit + 1)), 0])

        kind = rng.randrange(3)
        if kind == 0:
            sides = (width, height) * rng.choice([1, 2, 3, 4, 50])
            segmentation: Any = [[number(side) for side in sides] for _ in range(rng.choice([1, 1, 2]))]
        elif kind == 1:
            runs = sorted(rng.randrange(height * width + 1) for _ in range(rng.randrange(6)))
            counts = [b - a for a, b in zip([0, *runs], [*runs, height * width], strict=True)]
            if rng.random() < 0.3:
                counts[rng.randrange(len(counts))] += rng.choice([1, -1, 2**31, 2**32, 2**63, -(2**31)])
            segmentation = {"counts": counts, "size": [height, width]}
        else:
            letters = "".join(chr(rng.choice([*range(48, 112), 111, 79, 48])) for _ in range(rng.randrange(1, 12)))
            segmentation = {"counts": letters, "size": [height, width]}
        lines.append(json.dumps([height, width, segmentation]))
    return lines


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.hostile) for seed in range(2, 12))])
def test_the_native_decoder_survives_what_the_check_accepts(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DECODE],
        input="\n".join(_segmentations(seed, 1500)),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_limit_memory,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 300
