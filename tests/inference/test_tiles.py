"""Tiles and test-time augmentation, with models that are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from inference_fixtures import (
    ColorSegmentor,
    RectangleDetector,
    as_rectangles,
    detection_model,
    segmentation_model,
    with_rectangles,
)

from twins_dense.errors import TwinsError
from twins_dense.frameworks.prediction import Instances
from twins_dense.inference.tiles import merge, parse_views, segment_tiles, tile_starts


@pytest.mark.parametrize(("side", "tile", "overlap"), [(1000, 128, 0.2), (997, 100, 0.5), (64, 64, 0.2), (13, 64, 0.0)])
def test_tiles_cover_the_image_and_overlap(side: int, tile: int, overlap: float) -> None:
    starts = tile_starts(side, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(side - tile, 0) and starts == sorted(set(starts))
    for first, second in itertools.pairwise(starts):
        assert first + tile - second >= overlap * tile


def grid(rng: np.random.Generator, height: int, width: int) -> list[tuple[int, int, int, int, int]]:
    """Return small rectangles in cells of 37 pixels, at random places."""
    found = []
    for top in range(0, height - 37, 37):
        for left in range(0, width - 37, 37):
            x, y, w, h = rng.integers((1, 1, 6, 6), (12, 12, 19, 19)).tolist()
            found.append((int(rng.integers(3)), left + x, top + y, left + x + w, top + y + h))
    return found


class TestDetectors:
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_every_object_is_found_once(self, batch_size: int) -> None:
        """Objects on seams are cut in some tiles, with higher scores; only the whole ones remain, with their masks."""
        rng = np.random.default_rng(0)
        rectangles = grid(rng, 331, 523)
        image = with_rectangles(331, 523, rectangles)
        detector = RectangleDetector()
        found = detection_model(detector).predict(image, score=0.0, tile=101, overlap=0.3, batch_size=batch_size)
        assert as_rectangles(found) == sorted(rectangles)
        assert sorted(found.scores.tolist(), reverse=True) == found.scores.tolist()
        assert found.masks is not None
        for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.astype(int).tolist(), strict=True):
            assert mask.shape == (331, 523) and mask.sum() == (x2 - x1) * (y2 - y1) and mask[y1:y2, x1:x2].all()
        tiles = [count for count, shape, _ in detector.calls if shape == (101, 101, 3)]
        assert max(tiles) == batch_size and sum(tiles) > 25

    def test_an_object_larger_than_the_tiles(self) -> None:
        """It is found in the whole image, and its pieces in the tiles are dropped; others inside remain."""
        rectangles = [(0, 40, 50, 460, 290), (1, 100, 100, 120, 130), (0, 480, 300, 500, 320)]
        image = with_rectangles(331, 523, rectangles)
        image[100:130, 100:120, 0] = 255  # the green object is also part of the red one
        found = detection_model().predict(image, score=0.0, tile=101, overlap=0.2)
        assert as_rectangles(found) == sorted(rectangles)

    def test_a_shrunk_whole_image(self) -> None:
        """For the whole image, large pictures are shrunk; boxes and masks come back in full size."""
        rectangles = [(0, 100, 200, 1700, 1400)]
        detector = RectangleDetector()
        found = detection_model(detector).predict(with_rectangles(1600, 2000, rectangles), score=0.0, tile=800)
        assert detector.calls[0][1] == (800, 1000, 3)
        assert as_rectangles(found) == rectangles
        assert found.masks is not None and found.masks.sum() == 1600 * 1200

    def test_small_images_have_no_tiles(self) -> None:
        detector = RectangleDetector()
        image = with_rectangles(71, 97, [(2, 10, 20, 40, 50)])
        assert as_rectangles(detection_model(detector).predict(image, score=0.0, tile=100)) == [(2, 10, 20, 40, 50)]
        assert len(detector.calls) == 1

    def test_boxes_alone(self) -> None:
        image = with_rectangles(71, 297, [(2, 110, 20, 140, 50)])
        found = detection_model(RectangleDetector(with_masks=False)).predict(image, score=0.0, tile=64)
        assert as_rectangles(found) == [(2, 110, 20, 140, 50)] and found.masks is None

    def test_nothing_is_found(self) -> None:
        found = detection_model().predict(np.zeros((200, 300, 3), np.uint8), tile=64)
        assert len(found) == 0 and found.masks is not None and found.masks.shape == (0, 200, 300)


class TestMerging:
    def instances(self, *boxes: tuple[float, float, float, float, float, int]) -> Instances:
        values = np.array(boxes, dtype=np.float32).reshape(-1, 6)
        return Instances(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))

    def test_known_answer(self) -> None:
        """Within a class, the best of two overlapping detections of different parts remains."""
        first = self.instances((0, 0, 10, 10, 0.6, 0), (1, 0, 11, 10, 0.5, 0), (50, 50, 60, 60, 0.1, 2))
        second = self.instances((0, 1, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1), (0, 0, 10, 4, 0.7, 0))
        merged = merge([first, second])
        # Both of the first part give way to the best; the IoU with the last, 0.3, is too low.
        np.testing.assert_allclose(merged.scores, [0.9, 0.8, 0.7, 0.1])
        assert merged.labels.tolist() == [0, 1, 0, 2] and merged.masks is None

    def test_cut_detections_come_last(self) -> None:
        whole, cut = self.instances((0, 0, 100, 10, 0.2, 0)), self.instances((0, 0, 20, 10, 0.9, 0))
        np.testing.assert_allclose(merge([whole, cut]).scores, [0.9, 0.2])
        marks = [np.array([False]), np.array([True])]
        np.testing.assert_allclose(merge([whole, cut], marks).scores, [0.2])
        np.testing.assert_allclose(merge([cut], marks[1:]).scores, [0.9])  # better than nothing


class TestViews:
    def test_flipping_changes_nothing_for_an_exact_detector(self) -> None:
        rectangles = grid(np.random.default_rng(1), 131, 223)
        detector = RectangleDetector()
        image = with_rectangles(131, 223, rectangles)
        found = detection_model(detector).predict(image, score=0.0, tta="flip,0.5")
        assert as_rectangles(found) == sorted(rectangles)
        assert [scale for _, _, scale in detector.calls] == [1.0, 1.0, 0.5, 0.5]
        assert found.masks is not None
        for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.astype(int).tolist(), strict=True):
            assert mask.sum() == (x2 - x1) * (y2 - y1) and mask[y1:y2, x1:x2].all()

    def test_an_object_in_one_view_alone(self) -> None:
        class Biased(RectangleDetector):
            """Sees the left half alone."""

            def _find(self, image: np.ndarray, score: float) -> Instances:
                return super()._find(
                    np.where(np.arange(image.shape[1])[:, None] < image.shape[1] // 2, image, 0), score
                )

        image = with_rectangles(64, 100, [(0, 5, 5, 20, 20), (1, 70, 30, 90, 50)])
        model = detection_model(Biased())
        assert as_rectangles(model.predict(image, score=0.0)) == [(0, 5, 5, 20, 20)]
        assert as_rectangles(model.predict(image, score=0.0, tta=["flip"])) == [(0, 5, 5, 20, 20), (1, 70, 30, 90, 50)]

    def test_with_tiles(self) -> None:
        rectangles = grid(np.random.default_rng(2), 131, 223)
        image = with_rectangles(131, 223, rectangles)
        found = detection_model().predict(image, score=0.0, tile=64, overlap=0.4, tta="flip")
        assert as_rectangles(found) == sorted(rectangles)

    @pytest.mark.parametrize(
        ("tta", "views"),
        [
            (None, [(1.0, False)]),
            ("flip", [(1.0, False), (1.0, True)]),
            ("0.8,1.25", [(1.0, False), (0.8, False), (1.25, False)]),
            (["flip", 2], [(1.0, False), (1.0, True), (2.0, False), (2.0, True)]),
        ],
    )
    def test_parsing(self, tta: str | list[str | float] | None, views: list[tuple[float, bool]]) -> None:
        assert [tuple(view) for view in parse_views(tta)] == views

    @pytest.mark.parametrize("tta", ["turn", "flip,", "0", "flip,nan", [None], "100"])
    def test_unknown(self, tta: str | list[str | float]) -> None:
        with pytest.raises(TwinsError, match="choose 'flip' and factors of the image size") as caught:
            parse_views(tta)
        assert "\n" not in str(caught.value)


class TestSegmentors:
    def image(self) -> np.ndarray:
        return np.random.default_rng(3).integers(0, 256, (131, 223, 3), dtype=np.uint8)

    def test_tiles_change_nothing_for_an_exact_segmentor(self) -> None:
        model, image = segmentation_model(), self.image()
        expected = model.predict(image, confidence=True)
        assert (expected.labels == image.argmax(axis=2) + 1).all() and expected.labels.dtype == np.uint8
        tiled = model.predict(image, tile=64, overlap=0.25, batch_size=3, confidence=True)
        assert (tiled.labels == expected.labels).all()
        assert expected.confidence is not None and expected.confidence.shape == image.shape[:2]
        np.testing.assert_allclose(tiled.confidence, expected.confidence, rtol=1e-5)

    @pytest.mark.parametrize("size", [(131, 223), (64, 223), (131, 50), (40, 50)])
    def test_logits_are_averaged(self, size: tuple[int, int]) -> None:
        """Compare with a slow sum over all tiles, for logits that depend on the position in the tile."""
        image = self.image()[: size[0], : size[1]]
        segmentor = ColorSegmentor(positions=1.0)
        bands = [*segment_tiles(segmentor, image, tile=64, overlap=0.6, batch_size=2)]
        total, count = torch.zeros(3, *size), torch.zeros(size)
        for y in tile_starts(size[0], 64, 0.6):
            for x in tile_starts(size[1], 64, 0.6):
                total[:, y : y + 64, x : x + 64] += segmentor([image[y : y + 64, x : x + 64]])[0]
                count[y : y + 64, x : x + 64] += 1
        torch.testing.assert_close(torch.cat(bands, dim=1), total / count)
        assert all(band.shape[1] <= 64 for band in bands)

    def test_views_are_averaged(self) -> None:
        image = self.image()
        segmentor = ColorSegmentor(positions=1.0)
        found = segmentation_model(segmentor).predict(image, tta="flip,3", confidence=True)
        one, flipped = segmentor([image])[0], segmentor([np.ascontiguousarray(image[:, ::-1])])[0].flip(-1)
        mean = (one + flipped) * (1 + 3) / 4
        assert (found.labels == (mean.argmax(dim=0) + 1).numpy()).all()
        np.testing.assert_allclose(found.confidence, mean.softmax(dim=0).amax(dim=0), rtol=1e-5)
