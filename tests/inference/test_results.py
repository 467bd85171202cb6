"""Results: fields, indexing, pictures and other formats."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_fixtures import detection_model, segmentation_model, with_rectangles
from PIL import Image

from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.errors import TwinsError
from twins_dense.frameworks.prediction import Masks
from twins_dense.inference import Classification, Detections, Segmentation

RECTANGLES = [(0, 10, 20, 40, 50), (2, 50, 5, 60, 15), (0, 70, 60, 90, 70)]
IMAGE = with_rectangles(71, 97, RECTANGLES)


@pytest.fixture(scope="module")
def found() -> Detections:
    result = detection_model().predict(IMAGE)
    assert isinstance(result, Detections)
    return result


class TestDetections:
    def test_fields(self, found: Detections) -> None:
        assert len(found) == 3
        assert found.boxes.dtype == np.float32 and found.boxes.shape == (3, 4)
        assert found.scores.dtype == np.float32 and found.labels.dtype == np.int64
        assert sorted(found.names) == ["blue", "red", "red"]
        assert found.masks is not None and found.masks.dtype == bool and found.masks.shape == (3, 71, 97)
        assert repr(detection_model().predict(IMAGE)) in ("Detections(2 red, 1 blue)", "Detections(1 blue, 2 red)")

    def test_indexing(self, found: Detections) -> None:
        cases: list[tuple[Any, list[int]]] = [
            (1, [1]),
            (-1, [2]),
            (slice(1, None), [1, 2]),
            ([2, 0], [2, 0]),
            (np.array([2, 0]), [2, 0]),
            (found.labels == found.labels[1], np.flatnonzero(found.labels == found.labels[1]).tolist()),
            ([True, False, True], [0, 2]),
            ([], []),
        ]
        for index, numbers in cases:
            chosen = found[index]
            assert len(chosen) == len(numbers)
            assert chosen.scores.tolist() == [found.scores[number] for number in numbers]
            assert (chosen.boxes == found.boxes[np.array(numbers, dtype=int)]).all()
            assert chosen.masks is not None and found.masks is not None
            assert (chosen.masks == found.masks[np.array(numbers, dtype=int)]).all()
            assert chosen.image is found.image
        assert [len(one) for one in found] == [1, 1, 1]
        with pytest.raises(IndexError):
            found[3]
        with pytest.raises(IndexError):
            found[np.array([True])]

    def test_to_coco(self, found: Detections) -> None:
        for image_id, extra in ((None, set()), (7, {"image_id"})):
            entries = found.to_coco(image_id)
            assert len(entries) == 3
            for entry, box, label, mask in zip(entries, found.boxes, found.labels, found.masks, strict=True):
                assert {*entry} == {"category_id", "category", "bbox", "score", "segmentation"} | extra
                x1, y1, x2, y2 = box.tolist()
                assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
                assert (entry["category_id"], entry["category"]) == {0: (1, "red"), 2: (5, "blue")}[label]
                assert (decode_segmentation(entry["segmentation"], 71, 97) == mask).all()
                assert entry.get("image_id") == image_id

    def test_pictures(self, found: Detections, tmp_path: Path) -> None:
        for labels in ("auto", "none", "all"):
            assert found.draw(labels).size == (97, 71)  # type: ignore[arg-type]
        assert (np.asarray(found.draw()) != IMAGE).any()
        assert (np.asarray(found[[]].draw()) == IMAGE).all()
        found.save(tmp_path / "drawn.png")
        assert (np.asarray(Image.open(tmp_path / "drawn.png")) == np.asarray(found.draw())).all()
        assert Image.open(io.BytesIO(found._repr_png_())).size == (97, 71)
        with pytest.raises(TwinsError, match=r"drawn\.what") as caught:
            found.save(tmp_path / "drawn.what")
        assert "\n" not in str(caught.value)

    def test_to_supervision(self, found: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
        """The class of supervision is replaced, because the package is not among those of the tests."""
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(TwinsError, match="pip install supervision"):
            found.to_supervision()

        def record(**fields: Any) -> dict[str, Any]:
            return fields

        module = types.ModuleType("supervision")
        module.Detections = record  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "supervision", module)
        fields = found.to_supervision()
        assert {*fields} == {"xyxy", "mask", "confidence", "class_id", "data"}
        assert fields["xyxy"] is found.boxes and fields["data"]["class_name"].tolist() == found.names


def test_masks_are_exact() -> None:
    """Cropping and restoring changes nothing, whether masks are empty, touch the borders or have holes."""
    rng = np.random.default_rng(0)
    masks = rng.random((5, 13, 17)) < 0.1
    masks[1] = False
    masks[2] = True
    stored = Masks.from_array(masks)
    assert (stored.to_array() == masks).all() and (stored.select([4, 1]).to_array() == masks[[4, 1]]).all()
    assert Masks.from_array(masks[:0]).to_array().shape == (0, 13, 17)


class TestSegmentation:
    def test_fields_and_pictures(self, tmp_path: Path) -> None:
        found = segmentation_model().predict(IMAGE)
        assert isinstance(found, Segmentation)
        assert found.confidence is None and found.labels.dtype == np.uint8 and found.labels.shape == (71, 97)
        blue = 100 / (71 * 97)
        assert found.shares == {"red": pytest.approx(1 - blue), "blue": pytest.approx(blue)}
        assert repr(found) == "Segmentation(99% red, 1% blue)"
        assert found.draw().size == (97, 71) and found.legend().size[0] > 32
        found.save(tmp_path / "drawn.png")
        assert (np.asarray(Image.open(tmp_path / "drawn.png")) == np.asarray(found.draw())).all()


def test_classification() -> None:
    found = Classification(IMAGE, np.array([3, 1]), ["cat", "dog"], np.array([0.75, 0.2], dtype=np.float32))
    assert repr(found) == "Classification(75.0% cat, 20.0% dog)"
    assert found.draw().size == (97, 71)
