"""Detection samples: layout, selection of targets, seeds, and consistent augmentation of all parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_fixtures import CONFIGS, build_tiny, rectangle, write_coco
from mmengine.structures import BaseDataElement
from pycocotools import mask as mask_utils
from torch import Tensor

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine.detection_data import CocoDetectionDataset, build_transforms
from twins_dense.frameworks.mmengine.engine import load_config

CATEGORIES = {17: "zebra", 4: "apple", 9: "mug"}  # labels follow the ids: apple 0, mug 1, zebra 2
HEIGHT, WIDTH = 61, 83
# Separate rectangles (x, y, width, height), each painted in its own colour, so that pixels show where they are.
BOXES = ((3, 5, 23, 31), (37, 11, 41, 17), (29, 41, 19, 13), (59, 37, 1, 1))
CATEGORY_IDS = (9, 4, 17, 9)
COLOURS = ((200, 10, 10), (10, 180, 10), (10, 10, 220), (190, 190, 10))


def painted(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    for (x, y, w, h), colour in zip(BOXES, COLOURS, strict=True):
        pixels[y : y + h, x : x + w] = colour
    return pixels


def painted_annotations(image_id: int) -> list[dict[str, Any]]:
    return [
        {"image_id": image_id, "category_id": category, "bbox": list(box), "segmentation": rectangle(*box)}
        for category, box in zip(CATEGORY_IDS, BOXES, strict=True)
    ]


def crowd(image_id: int) -> dict[str, Any]:
    counts = [0, 100, HEIGHT * WIDTH - 100]
    return {
        "image_id": image_id,
        "category_id": 4,
        "bbox": [0, 0, 2, HEIGHT],
        "iscrowd": 1,
        "segmentation": {"counts": counts, "size": [HEIGHT, WIDTH]},
    }


def dataset(
    root: Path,
    images: dict[int, np.ndarray] | None = None,
    annotations: list[dict[str, Any]] | None = None,
    **options: Any,
) -> CocoDetectionDataset:
    """Build a data set of one painted image (id 12), or of the given images."""
    files = write_coco(
        root,
        {12: painted()} if images is None else images,
        painted_annotations(12) if annotations is None else annotations,
        CATEGORIES,
    )
    return CocoDetectionDataset(**files, **{"training": True, "with_masks": True, **options})


def image_ids(data: CocoDetectionDataset) -> list[int]:
    return [data[index]["data_samples"].image_id for index in range(len(data))]


def colour_masks(image: Tensor) -> Tensor:
    """Return the masks of the painted rectangles according to the pixels: bool (4, H, W)."""
    colours = torch.tensor(COLOURS, dtype=torch.uint8)
    return (image == colours[:, :, None, None]).all(dim=1)


def assert_together(sample: dict[str, Any]) -> list[int]:
    """Check that masks, boxes and labels agree with the pixels, and return the indices of the visible rectangles."""
    image, element = sample["inputs"], sample["data_samples"]
    shown = colour_masks(image)
    left = [i for i in range(len(BOXES)) if shown[i].any()]
    assert len(element.boxes) == len(element.labels) == len(element.masks) == len(left)
    labels = [sorted(CATEGORIES).index(CATEGORY_IDS[i]) for i in left]
    assert element.labels.tolist() == labels
    assert torch.equal(element.masks.bool(), shown[left])
    for mask, box in zip(element.masks, element.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return left


class TestTrainingSample:
    def test_layout(self, tmp_path: Path) -> None:
        sample = dataset(tmp_path)[0]
        assert set(sample) == {"inputs", "data_samples"}
        image, element = sample["inputs"], sample["data_samples"]
        assert type(image) is Tensor and image.dtype == torch.uint8
        np.testing.assert_array_equal(image.numpy(), painted().transpose(2, 0, 1))
        assert isinstance(element, BaseDataElement)
        assert set(element.keys()) == {"boxes", "labels", "masks"}
        assert all(type(value) is Tensor for value in element.values())
        assert {name: value.dtype for name, value in element.items()} == {
            "boxes": torch.float32,
            "labels": torch.int64,
            "masks": torch.uint8,
        }
        assert element.masks.shape == (4, HEIGHT, WIDTH)
        assert element.metainfo == {
            "image_id": 12,
            "file": str(tmp_path / "images" / "12.png"),
            "height": HEIGHT,
            "width": WIDTH,
        }

    def test_boxes_are_corners_and_labels_follow_the_ids(self, tmp_path: Path) -> None:
        data = dataset(tmp_path)
        element = data[0]["data_samples"]
        assert element.boxes.tolist() == [[3, 5, 26, 36], [37, 11, 78, 28], [29, 41, 48, 54], [59, 37, 60, 38]]
        assert element.labels.tolist() == [1, 0, 2, 1]
        assert data.metainfo == {"classes": ("apple", "mug", "zebra"), "category_ids": (4, 9, 17)}
        assert assert_together(data[0]) == [0, 1, 2, 3]

    def test_without_masks(self, tmp_path: Path) -> None:
        element = dataset(tmp_path, with_masks=False)[0]["data_samples"]
        assert set(element.keys()) == {"boxes", "labels"}

    def test_boxes_are_cut_at_the_border(self, tmp_path: Path) -> None:
        annotations = [{"image_id": 12, "category_id": 4, "bbox": [-7, 50, 20, 40]}]
        element = dataset(tmp_path, annotations=annotations, with_masks=False)[0]["data_samples"]
        assert element.boxes.tolist() == [[0, 50, 13, HEIGHT]]

    def test_crowd_is_no_target(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, annotations=[crowd(12), *painted_annotations(12), crowd(12)])
        assert assert_together(data[0]) == [0, 1, 2, 3]

    def test_gray_images_have_three_equal_channels(self, tmp_path: Path) -> None:
        gray = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
        image = dataset(tmp_path, {12: gray})[0]["inputs"]
        np.testing.assert_array_equal(image.numpy(), np.stack([gray] * 3))


class TestEvaluationSample:
    def test_layout(self, tmp_path: Path) -> None:
        annotations = [*painted_annotations(12), crowd(12)]
        data = dataset(tmp_path, annotations=annotations, training=False, transforms=[{"type": "RandomVerticalFlip"}])
        sample = data[0]
        np.testing.assert_array_equal(sample["inputs"].numpy(), painted().transpose(2, 0, 1))
        element = sample["data_samples"]
        assert list(element.keys()) == []
        assert set(element.metainfo_keys()) == {"image_id", "file", "height", "width", "annotations"}
        # The annotations are those of the file, including crowd regions.
        assert element.annotations == [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)]

    def test_images_without_annotations_are_kept(self, tmp_path: Path) -> None:
        images = {number: painted() for number in (12, 13)}
        data = dataset(tmp_path, images, training=False)
        assert image_ids(data) == [12, 13]
        assert data[1]["data_samples"].annotations == []

    def test_box_only_data(self, tmp_path: Path) -> None:
        """`with_masks` is set but no masks exist, which is fine, because evaluation needs none from the data set."""
        annotations = [{"image_id": 12, "category_id": 4, "bbox": [1, 2, 3, 4]}]
        assert len(dataset(tmp_path, annotations=annotations, training=False)) == 1


class TestEmptyImages:
    IMAGES = {number: painted() for number in (11, 12, 13)}
    ANNOTATIONS = [*painted_annotations(12), crowd(13)]  # 11 has no annotations, 13 only a crowd

    def test_left_out(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, self.IMAGES, self.ANNOTATIONS)
        assert image_ids(data) == [12]
        assert len(data) == 1

    def test_positions(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, self.IMAGES, self.ANNOTATIONS, filter_empty=False)
        assert [data[index]["data_samples"].image_id for index in (-1, -3)] == [13, 11]
        for index in (3, -4):
            with pytest.raises(IndexError):
                data[index]

    @pytest.mark.parametrize("with_masks", [True, False])
    def test_kept(self, tmp_path: Path, with_masks: bool) -> None:
        data = dataset(tmp_path, self.IMAGES, self.ANNOTATIONS, filter_empty=False, with_masks=with_masks)
        assert image_ids(data) == [11, 12, 13]
        for index in (0, 2):
            element = data[index]["data_samples"]
            assert element.boxes.shape == (0, 4) and element.boxes.dtype == torch.float32
            assert element.labels.shape == (0,) and element.labels.dtype == torch.int64
            assert ("masks" in element) == with_masks
            if with_masks:
                assert element.masks.shape == (0, HEIGHT, WIDTH)

    def test_nothing_left(self, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match=r"^\S*things\.json has no image with an instance: [^\n]*$"):
            dataset(tmp_path, self.IMAGES, [crowd(11), crowd(13)])

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    @pytest.mark.parametrize("indices", [(0, 1), (0, 2)], ids=["one empty", "all empty"])
    def test_a_training_step_is_finite(self, tmp_path: Path, kind: str, indices: tuple[int, ...]) -> None:
        data = dataset(tmp_path, self.IMAGES, self.ANNOTATIONS, filter_empty=False, with_masks=kind == "TwinsMaskRCNN")
        model = build_tiny(kind).train()
        samples = [data[index] for index in indices]
        losses = model([s["inputs"] for s in samples], [s["data_samples"] for s in samples], mode="loss")
        assert losses
        assert {name: bool(loss.isfinite()) for name, loss in losses.items()} == dict.fromkeys(losses, True)
        sum(losses.values()).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


class TestMasks:
    def test_the_three_forms_agree(self, tmp_path: Path) -> None:
        x, y, w, h = BOXES[1]
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[y : y + h, x : x + w] = 1
        compressed = mask_utils.encode(np.asfortranarray(expected))
        # Column by column: zeros up to the rectangle, then ones and zeros alternate.
        counts = [x * HEIGHT + y, h, *[HEIGHT - h, h] * (w - 1), (WIDTH - x - w) * HEIGHT + HEIGHT - y - h]
        size = [HEIGHT, WIDTH]
        forms: list[Any] = [
            rectangle(x, y, w, h),
            {"size": size, "counts": compressed["counts"].decode("ascii")},
            {"size": size, "counts": counts},
        ]
        annotations = [{"image_id": 12, "category_id": 9, "bbox": [x, y, w, h], "segmentation": form} for form in forms]
        masks = dataset(tmp_path, annotations=annotations)[0]["data_samples"].masks
        assert masks.shape[0] == 3
        for mask in masks:
            np.testing.assert_array_equal(mask.numpy(), expected)

    @pytest.mark.parametrize("segmentation", [{}, {"segmentation": []}, {"segmentation": None}])
    def test_box_only_data_is_refused(self, tmp_path: Path, segmentation: dict[str, Any]) -> None:
        annotations = painted_annotations(12)
        annotations[2] = {"image_id": 12, "category_id": 4, "bbox": [1, 2, 3, 4], **segmentation}
        with pytest.raises(TwinsError) as caught:
            dataset(tmp_path, annotations=annotations)
        message = str(caught.value)
        assert "\n" not in message
        for part in (str(tmp_path / "things.json"), "annotation 3 ", "RetinaNet"):
            assert part in message

    def test_box_only_data_without_masks(self, tmp_path: Path) -> None:
        annotations = [{"image_id": 12, "category_id": 4, "bbox": [1, 2, 3, 4]}]
        element = dataset(tmp_path, annotations=annotations, with_masks=False)[0]["data_samples"]
        assert element.boxes.tolist() == [[1, 2, 4, 6]]

    def test_indices_and_skip_bad(self, tmp_path: Path) -> None:
        images = {number: painted() for number in (11, 12, 13)}
        annotations = [*painted_annotations(11), *painted_annotations(12), *painted_annotations(13)]
        annotations[1] = {**annotations[1], "bbox": [1, 1, 0, 5]}
        data = dataset(tmp_path, images, annotations, skip_bad=True, indices=2)
        assert image_ids(data) == [11, 12]
        assert len(data[0]["data_samples"].boxes) == 3
        assert len(data.problems) == 1 and "annotation 2 of image 11.png" in data.problems[0]

    def test_boxes_without_area_are_left_out_unless_strict(self, tmp_path: Path) -> None:
        annotations = painted_annotations(12)
        annotations[1] = {**annotations[1], "bbox": [1, 1, 0, 5]}
        for name in ("lenient", "strict"):
            (tmp_path / name).mkdir()
        data = dataset(tmp_path / "lenient", annotations=annotations)
        assert len(data[0]["data_samples"].boxes) == len(annotations) - 1
        assert len(data.problems) == 1 and "has no area" in data.problems[0]
        with pytest.raises(TwinsError, match="has no area"):
            dataset(tmp_path / "strict", annotations=annotations, strict=True)

    def test_a_crowd_needs_no_mask(self, tmp_path: Path) -> None:
        region = {key: value for key, value in crowd(12).items() if key != "segmentation"}
        assert assert_together(dataset(tmp_path, annotations=[*painted_annotations(12), region])[0]) == [0, 1, 2, 3]


class TestSeeds:
    TRANSFORMS = [{"type": "RandomHorizontalFlip"}, {"type": "RandomRangeCrop", "min_size": 20, "max_size": 60}]

    def test_the_seed_alone_decides(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, transforms=self.TRANSFORMS)
        first = data[0, 5]
        torch.manual_seed(123)  # must not matter
        torch.rand(7)
        second = data[0, 5]
        assert torch.equal(first["inputs"], second["inputs"])
        for name, value in first["data_samples"].items():
            assert torch.equal(value, second["data_samples"].get(name)), name
        others = [data[0, seed]["inputs"] for seed in range(6, 16)]
        assert sum(torch.equal(first["inputs"], other) for other in others) == 0
        assert len({other.shape for other in others}) > 3

    def test_the_global_generator_is_left_alone(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, transforms=self.TRANSFORMS)
        before = torch.get_rng_state()
        data[0, 5]
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_large_seed(self, tmp_path: Path) -> None:
        """`SeededSampler` draws seeds below 2**63."""
        assert_together(dataset(tmp_path, transforms=self.TRANSFORMS)[0, 2**63 - 1])


class TestTransforms:
    def test_horizontal_flip(self, tmp_path: Path) -> None:
        sample = dataset(tmp_path, transforms=[{"type": "RandomHorizontalFlip", "p": 1.0}])[0]
        np.testing.assert_array_equal(sample["inputs"].numpy(), painted().transpose(2, 0, 1)[:, :, ::-1])
        assert sample["data_samples"].boxes.tolist() == [
            [WIDTH - x - w, y, WIDTH - x, y + h] for x, y, w, h in map(list, BOXES)
        ]
        assert assert_together(sample) == [0, 1, 2, 3]

    def test_a_flip_of_half_of_the_images(self, tmp_path: Path) -> None:
        data = dataset(tmp_path, transforms=[{"type": "RandomHorizontalFlip", "p": 0.5}])
        flipped = sum(data[0, seed]["data_samples"].boxes[0, 0].item() != BOXES[0][0] for seed in range(64))
        assert 16 <= flipped <= 48

    def test_range_crop(self, tmp_path: Path) -> None:
        config = {"type": "RandomRangeCrop", "min_size": 20, "max_size": 23}
        data = dataset(tmp_path, transforms=[config])
        sizes, lefts = set(), set()
        for seed in range(200):
            sample = data[0, seed]
            sizes.add(tuple(sample["inputs"].shape[1:]))
            lefts.add(tuple(assert_together(sample)))
        # Both ends of the range occur, and height and width are independent.
        assert sizes == {(height, width) for height in range(20, 24) for width in range(20, 24)}
        assert len(lefts) > 4 and () in lefts  # some crops contain no rectangle

    def test_range_crop_of_a_smaller_image(self, tmp_path: Path) -> None:
        """The height (61) is below the whole range; the width (83) is inside it."""
        config = {"type": "RandomRangeCrop", "min_size": 70, "max_size": 100}
        data = dataset(tmp_path, transforms=[config])
        widths = set()
        for seed in range(60):
            sample = data[0, seed]
            assert sample["inputs"].shape[1] == HEIGHT
            widths.add(sample["inputs"].shape[2])
            assert_together(sample)
        assert min(widths) >= 70 and max(widths) == WIDTH and len(widths) > 5

    def test_range_crop_draws_evenly_up_to_the_image(self, tmp_path: Path) -> None:
        """As in the recipes, 70..100 on a width of 83 means that all widths of 70..83 are equally likely."""
        data = dataset(tmp_path, transforms=[{"type": "RandomRangeCrop", "min_size": 70, "max_size": 100}])
        full = sum(data[0, seed]["inputs"].shape[2] == WIDTH for seed in range(140))
        assert 2 <= full <= 25  # 10 of 140 are expected; drawing up to 100 and clamping would give 81

    def test_meta_keeps_the_stored_size(self, tmp_path: Path) -> None:
        config = {"type": "RandomRangeCrop", "min_size": 20, "max_size": 23}
        element = dataset(tmp_path, transforms=[config])[0]["data_samples"]
        assert (element.height, element.width) == (HEIGHT, WIDTH)

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"type": "RandomHorizontalFlop"}, "type='RandomHorizontalFlop' is unknown"),
            ({"type": "functional"}, "type='functional' is unknown"),
            ({"type": "RandomHorizontalFlip", "q": 0.5}, "transform RandomHorizontalFlip: "),
            ({"type": "RandomHorizontalFlip", "p": 1.5}, "transform RandomHorizontalFlip: "),
            ({"type": "RandomRangeCrop", "min_size": 3}, "transform RandomRangeCrop: .*max_size"),
            ({"p": 0.5}, "type=None is unknown"),
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_errors(self, config: dict[str, Any], words: str, nested: bool) -> None:
        configs = [{"type": "RandomApply", "transforms": [config]}] if nested else [config]
        before = copy.deepcopy(configs)
        with pytest.raises(TwinsError, match=rf"^[^\n]*{words}[^\n]*$"):
            build_transforms(configs)
        assert configs == before

    def test_multi_scale_crop_of_the_3x_configs(self, tmp_path: Path) -> None:
        """About half of the images keep their size; the others are resized and cropped to 384..600 pixels."""
        config = load_config(CONFIGS / "mask_rcnn_svt_small_3x.py")
        transforms = config.train_dataloader.dataset.transforms
        height, width = 240, 320
        boxes = [[20, 30, 60, 80], [150, 100, 100, 120]]
        annotations = [{"image_id": 1, "category_id": 4, "bbox": box, "segmentation": rectangle(*box)} for box in boxes]
        images = {1: np.zeros((height, width, 3), np.uint8)}
        data = dataset(tmp_path, images, annotations, transforms=transforms)
        sizes = []
        for seed in range(24):
            sample = data[0, seed]
            element = sample["data_samples"]
            size = sample["inputs"].shape[1:]
            sizes.append(tuple(size))
            assert element.masks.shape == (len(element.boxes), *size)
            for mask, (x1, y1, x2, y2) in zip(element.masks.numpy(), element.boxes.tolist(), strict=True):
                rows, columns = np.nonzero(mask)
                # Masks are resized to whole pixels.
                assert columns.min() > x1 - 1 and columns.max() < x2 + 0.5
                assert rows.min() > y1 - 1 and rows.max() < y2 + 0.5
                assert mask.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.1, abs=700)
        kept = sizes.count((height, width))
        assert 6 <= kept <= 18
        changed = [size for size in sizes if size != (height, width)]
        assert all(384 <= side <= 600 for size in changed for side in size)
        assert len(set(changed)) > 3
