"""torchvision's detectors on Twins: every config builds what its name says, and both detectors learn and predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import randomise
from detection_fixtures import CONFIGS, TINY_SVT, assert_same_detections, build_tiny
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

import twins_dense as td
from twins_dense.frameworks.mmengine.engine import load_config

KINDS = ("TwinsMaskRCNN", "TwinsRetinaNet")
BOTH = pytest.mark.parametrize("kind", KINDS)
NUM_CLASSES = 3


# The configs


@BOTH
@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_weight_decay(kind: str, schedule: str) -> None:
    """3x: none for the positional encodings and for any norm; 1x: the same for all."""
    name = "mask_rcnn" if kind == "TwinsMaskRCNN" else "retinanet"
    settings = load_config(CONFIGS / f"{name}_svt_small_{schedule}.py").optim_wrapper
    settings.type = "OptimWrapper"
    settings.pop("dtype", None)
    model = build_tiny(kind)
    wrapper = build_optim_wrapper(model, settings)
    decay = {id(p): group["weight_decay"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    backbone = model.detector.backbone.bottom_up
    norms = [module for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
    free = {id(p) for module in [*norms, backbone.pos_block] for p in module.parameters()}
    # The tiny net has 4 blocks of 2 norms, 4 patch embeddings, 4 levels and, with every attention local, no other.
    assert len(norms) >= 16 - (1 if kind == "TwinsRetinaNet" else 0)
    for parameter_name, parameter in model.named_parameters():
        expected = 1e-4 if schedule == "1x" else 0.0 if id(parameter) in free else 0.05
        assert decay[id(parameter)] == expected, parameter_name
    if kind == "TwinsMaskRCNN":
        assert {group["lr"] for group in wrapper.optimizer.param_groups} == {2e-4 if schedule == "1x" else 1e-4}


# The detectors


def batch(*sizes: tuple[int, int], with_masks: bool = True) -> dict[str, Any]:
    """Images of these sizes with two boxes each: the left half and a square in the middle."""
    inputs, samples = [], []
    for number, (height, width) in enumerate(sizes):
        y, x = height // 2, width // 2
        boxes = torch.tensor([[0, 0, x, height], [x - 15, y - 15, x + 15, y + 15]], dtype=torch.float32)
        element = BaseDataElement(
            metainfo={"image_id": number, "height": height, "width": width},
            boxes=boxes,
            labels=torch.tensor([0, NUM_CLASSES - 1]),
        )
        if with_masks:
            masks = torch.zeros(2, height, width, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            element.masks = masks
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(element)
    return {"inputs": inputs, "data_samples": samples}


def constant(height: int, width: int, colour: Sequence[int] = (10, 100, 200)) -> dict[str, Any]:
    return one_image(torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, height, width))


def one_image(image: Tensor) -> dict[str, Any]:
    _, height, width = image.shape
    meta = {"image_id": 7, "height": height, "width": width}
    return {"inputs": [image], "data_samples": [BaseDataElement(metainfo=meta)]}


LIMIT = 10  # detections per image


def all_scores(kind: str, **settings: Any) -> dict[str, Any]:
    """Settings that let an untrained detector detect."""
    key = "box_score_thresh" if kind == "TwinsMaskRCNN" else "score_thresh"
    few = {"box_detections_per_img": LIMIT} if kind == "TwinsMaskRCNN" else {"detections_per_img": LIMIT}
    return {"options": {key: 0.0, **few}, **settings}


def decided(kind: str) -> nn.Module:
    """A detector with random weights everywhere: its scores differ, unlike those of a newly initialised one."""
    return randomise(build_tiny(kind, **all_scores(kind)), 3).eval()


def seen_images(model: nn.Module) -> list[Tensor]:
    """The batches that the backbone will see, as they come."""
    seen: list[Tensor] = []
    model.detector.backbone.bottom_up.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


@BOTH
class TestLoss:
    def test_finite_with_a_gradient_for_every_parameter(self, kind: str) -> None:
        model = build_tiny(kind, backbone={"variant": TINY_SVT, "drop_path_rate": 0.0}).train()
        losses = model(**batch((61, 83), (97, 71), with_masks=kind == "TwinsMaskRCNN"), mode="loss")
        assert len(losses) == (5 if kind == "TwinsMaskRCNN" else 2)
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
        # MMEngine adds up what has "loss" in its name, and only logs the rest.
        total, logged = model.parse_losses(losses)
        torch.testing.assert_close(torch.as_tensor(total), sum(losses.values()))
        parts = {name: loss.item() for name, loss in losses.items()}
        assert {name: value.item() for name, value in logged.items()} == pytest.approx(
            {"loss": sum(parts.values()), **parts}
        )
        total.backward()
        parameters = dict(model.named_parameters())
        assert [name for name, p in parameters.items() if p.grad is None] == []
        assert [name for name, p in parameters.items() if not p.grad.isfinite().all()] == []
        assert [name for name, p in parameters.items() if not p.grad.any()] == []

    def test_labels_that_the_detector_gets(self, kind: str) -> None:
        """torchvision's Mask R-CNN has the background at 0, its RetinaNet has none."""
        model = build_tiny(kind).train()
        seen: list[Any] = []
        model.detector.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
        data = batch((61, 83))
        model(**data, mode="loss")
        assert seen[0][0]["labels"].tolist() == ([1, 3] if kind == "TwinsMaskRCNN" else [0, 2])
        assert data["data_samples"][0].labels.tolist() == [0, 2]

    def test_training_draws_one_of_the_short_sides(self, kind: str) -> None:
        model = build_tiny(kind, min_size=(64, 96, 128), max_size=1000).train()
        seen = seen_images(model)
        for seed in range(12):
            torch.manual_seed(seed)  # how many random numbers a step takes depends on rounding
            model(**batch((64, 64)), mode="loss")
        assert {tuple(images.shape[2:]) for images in seen} == {(64, 64), (96, 96), (128, 128)}
        model.eval()
        seen.clear()
        model(**batch((64, 64)), mode="predict")
        assert tuple(seen[0].shape[2:]) == (128, 128)


@BOTH
class TestPredict:
    def test_layout(self, kind: str) -> None:
        model = build_tiny(kind, **all_scores(kind)).eval()
        sizes = [(150, 211), (97, 71), (64, 64)]
        data = batch(*sizes)
        with torch.inference_mode():
            elements = model(**data, mode="predict")
        assert len(elements) == 3
        for (height, width), element, sample in zip(sizes, elements, data["data_samples"], strict=True):
            assert element.metainfo == sample.metainfo
            count = len(element.boxes)
            assert 0 < count <= LIMIT
            assert set(element.keys()) == {"boxes", "labels", "scores"} | (
                {"masks"} if kind == "TwinsMaskRCNN" else set()
            )
            assert element.boxes.shape == (count, 4) and element.scores.shape == element.labels.shape == (count,)
            assert (element.boxes >= 0).all()
            assert (element.boxes <= torch.tensor([width, height, width, height])).all()
            # Clipping leaves torchvision's RetinaNet some without area, which are below any useful threshold.
            assert (element.boxes[:, 2:] >= element.boxes[:, :2]).all()
            assert set(element.labels.tolist()) <= set(range(NUM_CLASSES))
            assert ((element.scores >= 0) & (element.scores <= 1)).all()
            if kind == "TwinsMaskRCNN":
                assert element.masks.shape == (count, height, width) and element.masks.dtype == torch.bool

    def test_original_pixels(self, kind: str) -> None:
        """Two images that are resized to the same: the boxes on the one of twice the size are twice as large."""
        model = decided(kind)
        image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
        with torch.inference_mode():
            (small,) = model(**one_image(image))
            (large,) = model(**one_image(image.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)))
            small.boxes *= 2
        assert_same_detections(large, small, limit=LIMIT, box_rtol=1.3e-6, box_atol=1e-5, score_rtol=1.3e-6)
        assert large.boxes.max() > 96  # the longest side of a resized image

    def test_images_are_normalised_and_padded(self, kind: str) -> None:
        model = build_tiny(kind).eval()
        seen = seen_images(model)
        with torch.inference_mode():
            model(**constant(100, 110, (10, 100, 200)))
        (images,) = seen
        assert images.shape == (1, 3, 64, 96)  # 64 x 70.4, filled up to multiples of 32
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (torch.tensor([10, 100, 200]) / 255 - mean) / std
        torch.testing.assert_close(images[0, :, :, :70], expected[:, None, None].expand(3, 64, 70))
        assert not images[0, :, :, 71:].any()

    def test_labels_start_at_zero(self, kind: str) -> None:
        """With one class, every detection is of class 0."""
        model = build_tiny(kind, num_classes=1, **all_scores(kind)).eval()
        with torch.inference_mode():
            (element,) = model(**batch((64, 64)))
        assert len(element.labels) > 0 and not element.labels.any()

    def test_one_image_does_not_change_the_other(self, kind: str) -> None:
        model = decided(kind)
        data = batch((64, 64), (64, 64))
        with torch.inference_mode():
            together = model(**data)
            alone = [
                model([image], [sample])[0] for image, sample in zip(data["inputs"], data["data_samples"], strict=True)
            ]
        for left, right in zip(together, alone, strict=True):
            assert_same_detections(left, right, limit=LIMIT)
        with pytest.raises(AssertionError):
            assert_same_detections(alone[0], alone[1], limit=LIMIT)


class TestComparisonOfDetections:
    """What `assert_same_detections` accepts and what it does not."""

    SCORES = (0.9, 0.700001, 0.7, 0.3)

    @staticmethod
    def detections(scores: Sequence[float], order: Sequence[int] = (0, 1, 2, 3)) -> BaseDataElement:
        boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [2, 0, 9, 9], [0, 3, 9, 9]], dtype=torch.float32)
        rows = list(order)
        return BaseDataElement(
            boxes=boxes[rows], labels=torch.tensor([0, 1, 1, 2])[rows], scores=torch.tensor(scores)[rows]
        )

    def test_another_order(self) -> None:
        found = self.detections((0.9, 0.7, 0.700001, 0.3), order=(0, 2, 1, 3))
        assert_same_detections(found, self.detections(self.SCORES), limit=4)

    def test_another_one_at_the_cut(self) -> None:
        one, other = self.detections(self.SCORES, order=(0, 1)), self.detections(self.SCORES, order=(0, 2))
        with pytest.raises(AssertionError):
            assert_same_detections(one, other, limit=2)  # no more than half of them agree
        one, other = self.detections(self.SCORES, order=(0, 0, 1)), self.detections(self.SCORES, order=(0, 0, 2))
        assert_same_detections(one, other, limit=3)
        with pytest.raises(AssertionError):
            assert_same_detections(one, other, limit=4)  # there was no cut

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 3, 3), (0, 0, 1, 2)])
    def test_a_missing_one(self, order: tuple[int, ...]) -> None:
        for found, expected in ((order, (0, 1, 2, 3)), ((0, 1, 2, 3), order)):
            with pytest.raises(AssertionError):
                assert_same_detections(
                    self.detections(self.SCORES, found), self.detections(self.SCORES, expected), limit=4
                )

    @pytest.mark.parametrize(("name", "change"), [("boxes", 0.01), ("labels", 1), ("scores", 0.001)])
    def test_another_value(self, name: str, change: float) -> None:
        found = self.detections(self.SCORES)
        found.get(name)[0] += change
        with pytest.raises(AssertionError):
            assert_same_detections(found, self.detections(self.SCORES), limit=4)


class TestPyramid:
    @pytest.mark.parametrize("size", [(64, 96), (160, 128), (224, 352)])
    @pytest.mark.parametrize(
        ("kind", "strides"),
        [
            ("TwinsMaskRCNN", {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}),
            ("TwinsRetinaNet", {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}),
        ],
    )
    def test_levels(self, kind: str, strides: dict[str, int], size: tuple[int, int]) -> None:
        with torch.inference_mode():
            levels = build_tiny(kind).eval().detector.backbone(torch.zeros(2, 3, *size))
        # What comes after c5 rounds up.
        expected = {name: (2, 32, *(-(-side // stride) for side in size)) for name, stride in strides.items()}
        assert {name: tuple(level.shape) for name, level in levels.items()} == expected

    def test_retinanet_reads_c3_to_c5(self) -> None:
        bottom_up = build_tiny("TwinsRetinaNet").detector.backbone.bottom_up
        assert bottom_up.pyramid == td.PyramidSpec(("c3", "c4", "c5"), (32, 32, 64), (8, 16, 32))

    def test_mask_rcnn_reads_c2_to_c5(self) -> None:
        bottom_up = build_tiny().detector.backbone.bottom_up
        assert bottom_up.pyramid == td.PyramidSpec(("c2", "c3", "c4", "c5"), (16, 32, 32, 64), (4, 8, 16, 32))

    @pytest.mark.parametrize("fpn_channels", [32, 64])
    def test_p6_comes_from_c5(self, fpn_channels: int) -> None:
        """Also where c5 has as many channels (64) as the pyramid, where torchvision's block would take p5."""
        net = build_tiny("TwinsRetinaNet", fpn_channels=fpn_channels).eval().detector.backbone
        images = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            levels, c5 = net(images), net.bottom_up(images)[-1]
            p6 = nn.functional.conv2d(
                c5, net.fpn.extra_blocks.p6.weight, net.fpn.extra_blocks.p6.bias, stride=2, padding=1
            )
        torch.testing.assert_close(levels["p6"], p6)
        assert net.fpn.extra_blocks.p6.in_channels == 64

    def test_anchors_of_retinanet(self) -> None:
        """9 anchors a cell, from 32 pixels on the finest level to 512 x 2^(2/3) on the coarsest."""
        detector = build_tiny("TwinsRetinaNet").detector
        sizes = detector.anchor_generator.sizes
        assert [level[0] for level in sizes] == [32, 64, 128, 256, 512]
        assert detector.anchor_generator.num_anchors_per_location() == [9] * 5
        assert detector.detections_per_img == 10  # from the options

    def test_retinanet_keeps_a_hundred_detections(self) -> None:
        assert build_tiny("TwinsRetinaNet", options={}).detector.detections_per_img == 100
        assert build_tiny("TwinsMaskRCNN", options={}).detector.roi_heads.detections_per_img == 100


class TestSettings:
    @BOTH
    def test_backbone_weights_of_a_classifier(self, kind: str, tmp_path: Path) -> None:
        spec = td.TwinsSpec.from_columns(**TINY_SVT)
        torch.manual_seed(5)
        state = td.create_classifier(spec, num_classes=11).state_dict()
        torch.save(state, tmp_path / "tiny.pth")
        torch.manual_seed(6)
        backbone = {"variant": TINY_SVT, "weights": str(tmp_path / "tiny.pth")}
        found = build_tiny(kind, backbone=backbone).detector.backbone.bottom_up.state_dict()
        assert found.keys() - state.keys() == {f"norm_list.{i}.{name}" for i in range(4) for name in ("weight", "bias")}
        assert [name for name in found.keys() & state.keys() if not torch.equal(found[name], state[name])] == []
        assert any(".attn." in name and found[name].any() for name in found)

    @BOTH
    def test_backbone_weights_of_another_variant(self, kind: str, tmp_path: Path) -> None:
        spec = td.TwinsSpec.from_columns(**{**TINY_SVT, "dims": (16, 32, 32, 32)})
        torch.save(td.create_classifier(spec).state_dict(), tmp_path / "other.pth")
        with pytest.raises(td.TwinsError, match=r"other\.pth"):
            build_tiny(kind, backbone={"variant": TINY_SVT, "weights": str(tmp_path / "other.pth")})

    @BOTH
    def test_a_variant_is_needed(self, kind: str) -> None:
        with pytest.raises(td.TwinsError, match=r"model\.backbone\.variant=svt_small"):
            build_tiny(kind, backbone={"variant": None})

    @BOTH
    def test_unknown_backbone_setting(self, kind: str) -> None:
        with pytest.raises(TypeError, match="drop_path_rat"):
            build_tiny(kind, backbone={"variant": TINY_SVT, "drop_path_rat": 0.1})

    @BOTH
    def test_unknown_option(self, kind: str) -> None:
        with pytest.raises((TypeError, td.TwinsError), match="score_tresh"):
            build_tiny(kind, options={"score_tresh": 0.1})

    @BOTH
    def test_backbone_settings_arrive(self, kind: str) -> None:
        backbone = {"variant": TINY_SVT, "drop_path_rate": 0.3, "checkpointing": True, "window_padding": "mask"}
        net = build_tiny(kind, backbone=backbone).detector.backbone.bottom_up
        assert net.checkpointing is True
        expected = td.create_backbone(td.TwinsSpec.from_columns(**TINY_SVT), drop_path_rate=0.3, window_padding="mask")
        assert repr(net.blocks) == repr(expected.blocks)
