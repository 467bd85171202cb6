"""Kinds of images, batches, streams, and the options of `predict`."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference_fixtures import RectangleDetector, as_rectangles, detection_model, segmentation_model, with_rectangles
from PIL import Image

from twins_dense.errors import TwinsError
from twins_dense.evaluation.record import About, RecordWriter, identity_of

RECTANGLES = [(0, 10, 20, 40, 50), (2, 50, 5, 60, 15)]
IMAGE = with_rectangles(71, 97, RECTANGLES)
KINDS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "PIL image": lambda path: Image.fromarray(IMAGE),
    "array": lambda path: IMAGE,
    "view of an array": lambda path: np.flip(np.flip(IMAGE, 0).copy(), 0),
    "tensor": lambda path: torch.from_numpy(IMAGE).permute(2, 0, 1),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(IMAGE).save(path)
    return path


class TestImages:
    @pytest.mark.parametrize("kind", KINDS)
    def test_one(self, kind: str, file: Path) -> None:
        found = detection_model().predict(KINDS[kind](file))
        assert as_rectangles(found) == RECTANGLES
        assert (found.image == IMAGE).all()
        assert found.path == (file if kind in ("path", "text") else None)

    @pytest.mark.parametrize("kind", ["folder", "glob", "list", "tuple", "generator"])
    def test_many(self, kind: str, file: Path) -> None:
        Image.fromarray(IMAGE[:60]).save(file.with_name("second.png"))
        images = {
            "folder": file.parent,
            "glob": f"{file.parent}/*.png",
            "list": [make(file) for make in KINDS.values()],
            "tuple": (file, IMAGE),
            "generator": (make(file) for make in KINDS.values()),
        }[kind]
        results = detection_model().predict(images)
        assert iter(results) is results
        expected = 2 if kind in ("folder", "glob", "tuple") else len(KINDS)
        assert [as_rectangles(found) for found in results] == [RECTANGLES] * expected

    def test_an_empty_list(self) -> None:
        assert [*detection_model().predict([])] == []

    @pytest.mark.parametrize("as_file", [True, False])
    def test_exif_orientation(self, as_file: bool, tmp_path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6  # to be rotated by 90 degrees clockwise
        path = tmp_path / "turned.png"
        Image.fromarray(IMAGE).save(path, exif=turned)
        with Image.open(path) as opened:
            found = detection_model().predict(path if as_file else opened)
        assert (found.image == np.rot90(IMAGE, -1)).all()
        assert as_rectangles(found) == [(0, 71 - 50, 10, 71 - 20, 40), (2, 71 - 15, 50, 71 - 5, 60)]

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
    def test_other_modes(self, mode: str) -> None:
        found = detection_model().predict(Image.new(mode, (50, 40)))
        assert found.image.shape == (40, 50, 3)

    def test_results_do_not_share_memory_with_the_caller(self) -> None:
        buffer = IMAGE.copy()
        found = detection_model().predict(buffer)
        buffer[:] = 0
        assert (found.image == IMAGE).all()

    @pytest.mark.parametrize(
        ("image", "parts"),
        [
            (IMAGE.astype(np.float32), ("float32", "uint8")),
            (IMAGE[:, :, 0], ("(71, 97)", "(H, W, 3)")),
            (IMAGE[None], ("(1, 71, 97, 3)", "(H, W, 3)")),
            (IMAGE.transpose(2, 0, 1), ("(3, 71, 97)", "(H, W, 3)")),
            (IMAGE[:0], ("(0, 97, 3)", "pixel")),
            (torch.zeros(3, 5, 6), ("torch.float32", "(image * 255).round()")),
            (torch.zeros(3, 5, 6, dtype=torch.int64), ("torch.int64", "uint8")),
            (torch.zeros(5, 6, 3, dtype=torch.uint8), ("(5, 6, 3)", "(3, H, W)")),
            (torch.zeros(2, 3, 5, 6, dtype=torch.uint8), ("(2, 3, 5, 6)", "(3, H, W)")),
            (17, ("int", "a path, a PIL image")),
            (None, ("NoneType", "a path, a PIL image")),
            ("missing.jpg", ("'missing.jpg'", "no such file")),
            ("missing*.jpg", ("'missing*.jpg'", "no match")),
        ],
    )
    def test_bad_images(self, image: Any, parts: tuple[str, ...]) -> None:
        model = detection_model()
        with pytest.raises(TwinsError) as caught:
            model.predict(image)
        with pytest.raises(TwinsError) as in_a_list:
            next(model.predict([image]))
        for error in (caught, in_a_list):
            assert "\n" not in str(error.value)
        assert all(part in str(caught.value) for part in parts), caught.value

    def test_a_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"no image")
        with pytest.raises(TwinsError, match=r"broken.png: cannot be read as an image"):
            detection_model().predict(tmp_path / "broken.png")


class TestStreams:
    def test_images_of_one_size_form_batches(self) -> None:
        detector = RectangleDetector()
        sizes = [(50, 60)] * 5 + [(60, 50)] * 2 + [(50, 60)]
        images = [with_rectangles(*size, [(1, 5, 6, 10, 12 + number)]) for number, size in enumerate(sizes)]
        results = [*detection_model(detector).predict(images, batch_size=3)]
        assert [count for count, _, _ in detector.calls] == [3, 2, 2, 1]
        assert [as_rectangles(found) for found in results] == [[(1, 5, 6, 10, 12 + n)] for n in range(len(sizes))]

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_a_thousand_images_in_constant_memory(self, batch_size: int) -> None:
        """Results come as soon as their batch is complete, and nothing keeps them or their images."""
        made: list[int] = []
        alive: list[weakref.ref[Any]] = []

        def images() -> Iterator[np.ndarray]:
            for number in range(1000):
                image = with_rectangles(40, 60, [(0, 5, 5, 10, 10 + number % 20)])
                made.append(number)
                alive.append(weakref.ref(image))
                yield image

        most = 0
        results = detection_model().predict(images(), batch_size=batch_size)
        assert made == []
        for number, found in enumerate(results):
            assert as_rectangles(found) == [(0, 5, 5, 10, 10 + number % 20)]
            assert number < len(made) <= number + batch_size
            alive.append(weakref.ref(found))
            alive.append(weakref.ref(found.image))
            alive = [reference for reference in alive if reference() is not None]
            most = max(most, len(alive))
        assert len(made) == 1000
        assert most <= 4 * batch_size + 4, most
        del found
        gc.collect()
        assert [reference for reference in alive if reference() is not None] == []

    def test_an_error_comes_when_its_image_is_reached(self) -> None:
        results = detection_model().predict([IMAGE, IMAGE[:55], "missing.jpg"])
        assert as_rectangles(next(results)) == RECTANGLES
        assert len(next(results)) == 2
        with pytest.raises(TwinsError, match=r"missing\.jpg"):
            next(results)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"score": 1.5}, "score=1.5"),
        ({"score": float("nan")}, "score=nan"),
        ({"score": "best"}, "score='best': choose a number in 0..1, or 'auto'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"tile": 8}, "tile=8"),
        ({"tile": True}, "tile=True"),
        ({"tile": 64, "overlap": 1.0}, "overlap=1.0"),
        ({"tta": "spin"}, "'spin'"),
        ({"top": 0}, "top=0"),
        ({"confidence": True}, "only segmentors"),
    ],
)
def test_bad_options(options: dict[str, Any], part: str) -> None:
    """They are reported before any image is read, for many images as well."""
    for images in (IMAGE, [IMAGE]):
        with pytest.raises(TwinsError) as caught:
            detection_model().predict(images, **options)
        assert part in str(caught.value) and "\n" not in str(caught.value)


def test_the_model_describes_itself() -> None:
    assert repr(detection_model()) == "<detection model 'rectangles': 3 classes, cpu, float32>"
    assert segmentation_model().task == "segmentation" and segmentation_model().classes == ("red", "green", "blue")


class TestRecommendedScores:
    """score="auto" uses the thresholds of the evaluation of the checkpoint."""

    @staticmethod
    def evaluated(run: Path, folder: Path, *, content: bytes = b"weights", scores: tuple[float, ...] = (0.9,)) -> None:
        """Write a checkpoint, and its evaluation: each class finds its objects with the given scores."""
        checkpoint = run / "epoch_1.pth"
        run.mkdir(exist_ok=True)
        checkpoint.write_bytes(content)
        model = detection_model()
        settings = {"category_ids": list(model.category_ids), "iou_types": ["bbox"], "max_dets": 100}
        identity = identity_of(checkpoint, {})
        about = About("detection", list(model.classes), 30, identity, str(checkpoint), "data", settings)
        with RecordWriter(folder, about) as writer:
            for index in range(30):
                things = [
                    {"image_id": index, "category_id": category, "bbox": [60.0 * k, 0.0, 20.0, 20.0]}
                    for k, category in enumerate(model.category_ids)
                ]
                found = [{**thing, "score": score} for thing, score in zip(things, scores, strict=False)]
                image = {"id": index, "height": 300, "width": 300}
                entry = {"index": index, "file": "a.jpg", "image": image, "annotations": things, "detections": found}
                writer.add(entry)

    @staticmethod
    def model(checkpoint: Path) -> Any:
        model = detection_model()
        model._checkpoint = model._checkpoint._replace(path=checkpoint)
        return model

    def test_the_thresholds_of_each_class(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        scores = np.linspace(0.9, 0.3, len(detection_model().classes))
        self.evaluated(run, run / "evaluation", scores=tuple(scores))
        model = self.model(run / "epoch_1.pth")
        # F1 is 1 from 0 to the score of the class; the middle of this range is recommended.
        np.testing.assert_allclose(model.recommended_scores, scores / 2, atol=0.0101)
        assert as_rectangles(model.predict(IMAGE, score="auto")) == RECTANGLES

    def test_classes_have_their_own_thresholds(self, tmp_path: Path) -> None:
        model = detection_model()
        model.recommended_scores = np.array([0.2, 0.2, 1.0][: len(model.classes)])
        assert [label for label, *_ in as_rectangles(model.predict(IMAGE, score="auto"))] == [0]

    def test_the_evaluation_of_the_run_comes_first_and_then_the_newest(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        checkpoint = run / "epoch_1.pth"
        for name, score in (("old", 0.8), ("new", 0.6)):
            self.evaluated(run, tmp_path / "run_eval" / name, scores=(score,) * 9)
        os.utime(tmp_path / "run_eval" / "old" / "record" / "about.json", (1, 1))
        assert self.model(checkpoint).recommended_scores[0] == pytest.approx(0.3, abs=0.0101)
        self.evaluated(run, run / "evaluation", scores=(0.4,) * 9)
        assert self.model(checkpoint).recommended_scores[0] == pytest.approx(0.2, abs=0.0101)

    @pytest.mark.parametrize("kind", ["none", "another checkpoint", "unfinished"])
    def test_no_evaluation(self, kind: str, tmp_path: Path) -> None:
        run = tmp_path / "run"
        self.evaluated(run, run / "evaluation")
        if kind == "none":
            shutil.rmtree(run / "evaluation")
        elif kind == "another checkpoint":
            (run / "epoch_1.pth").write_bytes(b"weights of another epoch")
        else:
            entries = run / "evaluation" / "record" / "images-0.jsonl"
            entries.write_bytes(b"".join(entries.read_bytes().splitlines(True)[:-1]))
        with pytest.raises(TwinsError, match=r"no finished evaluation of .*run `twins-dense eval .*epoch_1.pth` first"):
            self.model(run / "epoch_1.pth").predict(IMAGE, score="auto")

    def test_only_for_detectors(self) -> None:
        with pytest.raises(TwinsError, match="score='auto': only detectors have score thresholds"):
            segmentation_model().predict(IMAGE, score="auto")
