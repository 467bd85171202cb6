"""Pictures of instances and label maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from twins_dense.data.drawing import draw_classes, draw_comparison, draw_instances, side_by_side

NAMES = ("cell", "a class with a long name")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)


def squares(shape: tuple[int, ...], side: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes and the masks of squares on a grid."""
    corners = [(x, y) for y in range(0, shape[0] - side + 1, step) for x in range(0, shape[1] - side + 1, step)]
    masks = np.zeros((len(corners), *shape[:2]), bool)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return np.array([(x, y, x + side, y + side) for x, y in corners], float), masks


def colors_of(picture: np.ndarray, where: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(color) for color in picture[where].tolist()}


@pytest.mark.parametrize("side", [1, 2, 5, 30])
@pytest.mark.parametrize("with_masks", [True, False])
def test_every_outline_is_visible_in_its_color(image: np.ndarray, side: int, with_masks: bool) -> None:
    boxes, masks = squares(image.shape, side, side + 3)
    labels = np.zeros(len(boxes), int)
    picture = draw_instances(image, boxes, labels, NAMES, masks=masks if with_masks else None, show_labels="none")
    inner = np.zeros_like(masks)
    inner[:, 1:-1, 1:-1] = (
        masks[:, 1:-1, 1:-1] & masks[:, :-2, 1:-1] & masks[:, 2:, 1:-1] & masks[:, 1:-1, :-2] & masks[:, 1:-1, 2:]
    )
    colors = [colors_of(picture, mask & ~inside) for mask, inside in zip(masks, inner, strict=True)]
    assert all(len(found) == 1 for found in colors)
    for neighbors in pairwise(colors):
        assert neighbors[0] != neighbors[1]
    outside = ~masks.any(axis=0)
    assert (picture[outside] == image[outside]).all()


def test_inside_of_masks_is_translucent_and_of_boxes_unchanged(image: np.ndarray) -> None:
    boxes, masks = squares(image.shape, 40, 50)
    inside = masks[0].copy()
    inside[[0, 39]] = inside[:, [0, 39]] = False
    picture = draw_instances(image, boxes[:1], [0], NAMES, masks=masks[:1], show_labels="none")
    tint = picture[inside] - 0.7 * image[inside]
    assert (np.ptp(tint, axis=0) <= 1).all() and tint.max() > 20  # 30 % of one colour
    picture = draw_instances(image, boxes[:1], [0], NAMES, show_labels="none")
    assert (picture[inside] == image[inside]).all()


def test_small_objects_are_on_top(image: np.ndarray) -> None:
    boxes = np.array([[10, 10, 20, 20], [0, 0, 97, 97]])
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, 10:20, 10:20] = masks[1, :97, :97] = True
    alone = draw_instances(image, boxes[:1], [0], NAMES, masks=masks[:1], show_labels="none")
    both = draw_instances(image, boxes, [0, 0], NAMES, masks=masks, show_labels="none")
    outline = (np.array([10, 10, 19, 19]), np.array([10, 19, 10, 19]))
    assert (both[outline] == alone[outline]).all()


def test_colors_depend_on_the_position_alone(image: np.ndarray) -> None:
    boxes, masks = squares(image.shape, 6, 12)
    labels = np.zeros(len(boxes), int)
    every = draw_instances(image, boxes, labels, NAMES, masks=masks, show_labels="none")
    first = draw_instances(image, boxes[:9], labels[:9], NAMES, masks=masks[:9], show_labels="none")
    shown = masks[:9].any(axis=0)
    assert (every[shown] == first[shown]).all()


class TestNames:
    def test_auto_draws_no_name_beyond_its_object(self, image: np.ndarray) -> None:
        for width, height in [(20, 20), (60, 8), (128, 13), (90, 60), (131, 97)]:
            boxes = [[0, 0, width, height]]
            picture = draw_instances(image, boxes, [1], NAMES, scores=[0.5])
            assert (picture[height:] == image[height:]).all() and (picture[:, width:] == image[:, width:]).all()

    def test_auto_draws_names_that_fit(self, image: np.ndarray) -> None:
        boxes = [[5, 5, 100, 80]]
        named, plain = (draw_instances(image, boxes, [0], NAMES, show_labels=mode) for mode in ("auto", "none"))
        changed = (named != plain).any(axis=2)
        assert changed.any() and not changed[42:].any()  # less than half of the object

    def test_small_objects_have_no_name_unless_all_have(self, image: np.ndarray) -> None:
        boxes, labels = [[40, 40, 50, 50]], [0]
        auto, none, every = (
            draw_instances(image, boxes, labels, NAMES, show_labels=mode) for mode in ("auto", "none", "all")
        )
        assert (auto == none).all() and (every != none).any()

    def test_names_do_not_cover_each_other(self, image: np.ndarray) -> None:
        box = [10, 10, 120, 90]
        once = draw_instances(image, [box], [0], NAMES)
        alone = (once != draw_instances(image, [box], [0], NAMES, show_labels="none")).any(axis=2)
        # Seven instances have different colours. The box has four corners, so that three names are left out.
        plain = draw_instances(image, [box] * 7, [0] * 7, NAMES, show_labels="none")
        named = (plain != draw_instances(image, [box] * 7, [0] * 7, NAMES)).any(axis=2)
        assert 3.5 * alone.sum() < named.sum() < 4.5 * alone.sum()

    def test_scores_are_part_of_the_names(self, image: np.ndarray) -> None:
        boxes = [[0, 0, 131, 97]]
        pictures = [draw_instances(image, boxes, [0], NAMES, scores=scores) for scores in (None, [0.5], [0.75])]
        assert (pictures[0] != pictures[1]).any() and (pictures[1] != pictures[2]).any()


@pytest.mark.parametrize("show_labels", ["auto", "none", "all"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5000), (97, 131)])
def test_any_size_and_boxes_beyond_the_border(shape: tuple[int, int], show_labels: Any) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    image.setflags(write=False)
    boxes = [[-5, -7, 3, 4], [shape[1] - 2, shape[0] - 2, shape[1] + 9, shape[0] + 9], [1e6, 1e6, 1e6, 1e6]]
    masks = np.zeros((3, *shape), bool)
    masks[0, 0, 0] = masks[1, -1, -1] = True  # the third is empty
    for given in (None, masks):
        picture = draw_instances(
            image, boxes, [0, 1, 0], NAMES, scores=[0, 0.5, 1], masks=given, show_labels=show_labels
        )
        assert picture.shape == image.shape and picture.dtype == np.uint8 and (picture != image).any()
    assert (image == 90).all()


def test_without_instances(image: np.ndarray) -> None:
    for masks in (None, np.zeros((0, 97, 131), bool)):
        picture = draw_instances(image, [], [], NAMES, scores=[], masks=masks, show_labels="all")
        assert (picture == image).all() and not np.shares_memory(picture, image)


def test_tensors_and_arrays_give_the_same(image: np.ndarray) -> None:
    boxes, masks = squares(image.shape, 31, 33)
    labels, scores = np.arange(len(boxes)) % 2, np.linspace(0, 1, len(boxes))
    arrays = draw_instances(image, boxes, labels, NAMES, scores=scores, masks=masks)
    tensors = [torch.from_numpy(values) for values in (boxes, labels, scores, masks)]
    picture = draw_instances(image, *tensors[:2], NAMES, scores=tensors[2], masks=tensors[3])
    assert (picture == arrays).all()


class TestComparison:
    def test_truth_left_and_prediction_right(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (390, 401, 3), dtype=np.uint8)
        boxes, masks = squares(image.shape, 50, 171)
        truth = {"boxes": boxes, "labels": [0] * len(boxes), "masks": masks}
        picture = draw_comparison(image, truth, {"boxes": [], "labels": [], "scores": [], "masks": []}, NAMES)
        assert (picture[:, :401] == draw_instances(image, boxes, truth["labels"], NAMES, masks=masks)).all()
        assert (picture[:, -401:] == image).all() and (picture[:, 401:-401] == 255).all()

    def test_small_images_are_enlarged(self, image: np.ndarray) -> None:
        truth = {"boxes": [[10, 20, 30, 40]], "labels": [0]}
        picture = draw_comparison(image, truth, {"boxes": [], "labels": []}, NAMES)
        assert picture.shape[0] == 3 * 97
        assert (picture[:, -3 * 131 :][1::3, 1::3] == image).all()
        changed = (picture[:, : 3 * 131] != picture[:, -3 * 131 :]).any(axis=2).nonzero()
        assert [int(axis.min()) for axis in changed] == [60, 30] and [int(axis.max()) for axis in changed] == [119, 89]

    def test_side_by_side(self, image: np.ndarray) -> None:
        assert (side_by_side(image) == image).all()
        joined = side_by_side(image, image[:, :50], image)
        assert joined.shape[0] == 97 and (joined[:, -131:] == image).all()


class TestClasses:
    PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 250))

    def test_tint_and_borders(self, image: np.ndarray) -> None:
        classes = np.zeros((97, 131), np.uint8)
        classes[:, 60:] = 2
        picture = draw_classes(image, classes, self.PALETTE)
        expected = (image.astype(int) + np.array(self.PALETTE)[classes]) // 2
        assert (picture[:, :59] == expected[:, :59]).all() and (picture[:, 61:] == expected[:, 61:]).all()
        assert (picture[:, 59] == (255, 0, 0)).all() and (picture[:, 60] == (0, 0, 250)).all()

    def test_ignored_pixels_are_not_tinted(self, image: np.ndarray) -> None:
        classes = np.full((97, 131), 1, np.uint8)
        classes[10:20] = 255
        picture = draw_classes(image, classes, self.PALETTE)
        assert (picture[10:20] == image[10:20]).all() and (picture[50:] != image[50:]).any()

    def test_one_pixel(self) -> None:
        picture = draw_classes(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), int), self.PALETTE)
        assert picture.tolist() == [[[127, 0, 0]]]
