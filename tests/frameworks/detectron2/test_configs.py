"""The detectron2 configs: all of them build, have the published settings, and train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import VARIANTS, block_settings, shapes_of
from d2_fixtures import CONFIGS, HEADS, MARKS, NAMES, engine
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import nn

import twins_dense as td
from twins_dense.frameworks.detectron2.solver import multi_step_lr
from twins_dense.models.spec import get_spec

pytestmark = MARKS
ALL = pytest.mark.parametrize("name", NAMES)
YAML = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
# 12 and 36 epochs of 7,330 batches of 16 images.
ITERATIONS = {"1x": 87_960, "3x": 263_880}
# Fractions of the base learning rate by iteration: warm-up over 500 from 0.001; steps after epochs 8, 11 and 27, 33.
WARM_UP = {0: 0.001, 125: 0.25075, 250: 0.5005, 499: 0.998002, 500: 1.0}
SCHEDULES = {
    "1x": WARM_UP | {58_639: 1.0, 58_640: 0.1, 80_629: 0.1, 80_630: 0.01, 87_959: 0.01},
    "3x": WARM_UP | {197_909: 1.0, 197_910: 0.1, 241_889: 0.1, 241_890: 0.01, 263_879: 0.01},
}


def load(name: str, *overrides: str) -> DictConfig:
    return engine.load_config(CONFIGS / f"{name}.py", overrides)


def build_on_meta(config: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return instantiate(config.model)


def part_of(name: str) -> tuple[str, str, str]:
    """Split the name of a config into head, variant and schedule."""
    match = re.fullmatch(r"(mask_rcnn|retinanet)_((?:svt|pcpvt)_\w+)_([13]x)", name)
    assert match is not None
    return match[1], match[2], match[3]


def test_files() -> None:
    found = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*") if path.suffix in (".py", ".yaml")}
    experiments = {path for path in found if path.parts[0] != "common"}
    assert experiments == {Path(f"{name}.py") for name in NAMES} | {Path(YAML.name)}
    assert len(NAMES) == 24 and len(found) > len(experiments)


@ALL
class TestValues:
    def test_builds(self, name: str) -> None:
        head, variant, _ = part_of(name)
        config = load(name)
        model = build_on_meta(config)
        assert type(model).__name__ == {"mask_rcnn": "GeneralizedRCNN", "retinanet": "RetinaNet"}[head]
        bottom_up = model.backbone.bottom_up
        out_indices = (0, 1, 2, 3) if head == "mask_rcnn" else (1, 2, 3)
        with torch.device("meta"):
            expected = td.create_backbone(variant, out_indices=out_indices, window_padding="zeros", drop_path_rate=0.2)
        assert str(bottom_up.net) == str(expected) and block_settings(bottom_up.net) == block_settings(expected)
        assert shapes_of(bottom_up.net) == shapes_of(expected)
        assert list(bottom_up.output_shape()) == [f"res{index + 2}" for index in out_indices]
        if head == "retinanet":
            top = model.backbone.top_block
            assert top.in_feature == "res5"
            assert top.p6.in_channels == get_spec(variant).stages[-1].dim
        levels = model.backbone.output_shape()
        first = 2 if head == "mask_rcnn" else 3
        assert {key: shape.stride for key, shape in levels.items()} == {
            f"p{level}": 2**level for level in range(first, first + 5)
        }
        num_classes = model.roi_heads.num_classes if head == "mask_rcnn" else model.num_classes
        assert num_classes == 80

    def test_pixels_are_rgb_with_the_mean_and_deviation_of_imagenet(self, name: str) -> None:
        config = load(name)
        assert config.model.input_format == "RGB"
        assert [config.dataloader[split].mapper.image_format for split in ("train", "test")] == ["RGB", "RGB"]
        assert list(config.model.pixel_mean) == [123.675, 116.28, 103.53]
        assert list(config.model.pixel_std) == [58.395, 57.12, 57.375]

    def test_optimizer(self, name: str) -> None:
        head, _, schedule = part_of(name)
        config = load(name)
        config.optimizer.params.model = build_on_meta(config)
        optimizer = instantiate(config.optimizer)
        assert type(optimizer) is torch.optim.AdamW
        rate = {("mask_rcnn", "1x"): 2e-4, ("retinanet", "1x"): 1e-4}.get((head, schedule), 1e-4)
        assert [(group["lr"], tuple(group["betas"])) for group in optimizer.param_groups] == [
            (rate, (0.9, 0.999)) for _ in optimizer.param_groups
        ]
        decay = {"1x": [1e-4], "3x": [0.05, 0.0]}[schedule]
        assert [group["weight_decay"] for group in optimizer.param_groups] == decay
        assert config.dataloader.train.total_batch_size == config.train.auto_scale_lr.base_batch_size == 16
        assert config.train.auto_scale_lr.enabled

    def test_schedule(self, name: str) -> None:
        schedule = part_of(name)[2]
        config = load(name)
        assert config.train.max_iter == ITERATIONS[schedule]
        assert config.train.checkpointer.period == config.train.eval_period == 7_330
        multiplier = instantiate(config.lr_multiplier)
        found = {iteration: multiplier(iteration / config.train.max_iter) for iteration in SCHEDULES[schedule]}
        assert found == pytest.approx(SCHEDULES[schedule])
        # bfloat16 if the published recipe uses mixed precision.
        assert (config.train.amp.enabled, config.train.amp.dtype) == (schedule == "3x", "bfloat16")

    def test_data(self, name: str) -> None:
        head, _, schedule = part_of(name)
        data = load(name).dataloader
        assert (data.train.dataset.name, data.test.dataset.name) == ("coco_2017_train", "coco_2017_val")
        assert data.evaluator.dataset_name == "coco_2017_val"
        assert data.train.dataset.training and not data.test.dataset.training
        assert data.train.dataset.with_masks == data.train.mapper.use_instance_mask == (head == "mask_rcnn")
        (resize,) = instantiate(data.test.mapper).augmentations.augs
        assert sizes_of(resize) == ({800}, 1333)
        flip, *middle, resize = instantiate(data.train.mapper).augmentations.augs
        assert isinstance(flip, T.RandomFlip) and flip.horizontal and not flip.vertical and flip.prob == 0.5
        short = {"1x": {800}, "3x": {480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800}}[schedule]
        assert sizes_of(resize) == (short, 1333)
        assert len(middle) == {"1x": 0, "3x": 1}[schedule]

    def test_the_output_folder_is_its_own(self, name: str) -> None:
        assert Path(load(name).train.output_dir).name == name


def sizes_of(resize: Any) -> tuple[set[int], int]:
    assert isinstance(resize, T.ResizeShortestEdge)
    sizes = set(resize.short_edge_length)
    assert len(sizes) == 1 or not resize.is_range
    return sizes, resize.max_size


@pytest.mark.parametrize("head", HEADS)
def test_anchors(head: str) -> None:
    """The first anchor is centred on the image corner. Areas depend on the level; aspect ratios are 1/2, 1 and 2."""
    model = load(f"{head}_pcpvt_base_3x").model
    generator = instantiate(model.get("proposal_generator", model).anchor_generator)
    strides = {"mask_rcnn": [4, 8, 16, 32, 64], "retinanet": [8, 16, 32, 64, 128]}[head]
    steps = {"mask_rcnn": [8], "retinanet": [4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)]}[head]
    levels = generator([torch.zeros(1, 1, 2, 3) for _ in strides])
    for stride, level in zip(strides, levels, strict=True):
        boxes = level.tensor.reshape(2, 3, len(steps) * 3, 4)
        centres, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        for row, column in ((0, 0), (1, 2)):
            expected = torch.tensor([column * stride, row * stride], dtype=torch.float32)
            torch.testing.assert_close(centres[row, column], expected.expand(len(steps) * 3, 2))
        widths, heights = sizes[0, 0].unbind(-1)
        areas = torch.tensor([float(stride * step) ** 2 for step in steps for _ in range(3)])
        torch.testing.assert_close(widths * heights, areas)
        torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0] * len(steps)))


def test_multi_scale_crop_in_action() -> None:
    """About half of the images are resized to 400, 500 or 600 and cropped to 384..600 before the last resize."""
    mapper = instantiate(load("retinanet_svt_small_3x").dataloader.train.mapper)
    np.random.seed(0)
    image = np.zeros((480, 640, 3), np.uint8)
    num_crops = num_flips = 0
    first, last = set(), set()
    for _ in range(200):
        steps = [
            step for step in mapper.augmentations(T.AugInput(image)).transforms if not isinstance(step, T.NoOpTransform)
        ]
        if isinstance(steps[0], T.HFlipTransform):
            num_flips += 1
            steps = steps[1:]
        *crop, resize = steps
        last.add(min(resize.new_h, resize.new_w))
        assert max(resize.new_h, resize.new_w) <= 1333
        if crop:
            num_crops += 1
            small, cut = crop
            assert (small.h, small.w) == (480, 640) and small.new_w == pytest.approx(small.new_h * 4 / 3, abs=1)
            first.add(small.new_h)
            assert isinstance(cut, T.CropTransform)
            assert 384 <= cut.h <= min(600, small.new_h) and 384 <= cut.w <= min(600, small.new_w)
            assert (resize.h, resize.w) == (cut.h, cut.w)
        else:
            assert (resize.h, resize.w) == (480, 640)
    assert first == {400, 500, 600} and last == set(range(480, 801, 32))
    assert 70 < num_crops < 130 and 70 < num_flips < 130  # four standard deviations


# Training steps and detections of the real models

# All anchors are sampled and stochastic depth is off, so that all pyramid levels and all blocks get gradients.
SMALL = {
    "mask_rcnn": [
        "model.proposal_generator.batch_size_per_image=10000",
        "model.proposal_generator.pre_nms_topk=[100,100]",
        "model.proposal_generator.post_nms_topk=[50,20]",
        "model.roi_heads.batch_size_per_image=32",
        "model.roi_heads.box_predictor.test_score_thresh=0.0",
        "model.roi_heads.box_predictor.test_topk_per_image=10",
    ],
    "retinanet": [
        "model.test_score_thresh=0.0",
        "model.test_topk_candidates=50",
        "model.max_detections_per_image=10",
    ],
}
IMAGE_SIZES = [(64, 96), (75, 50)]


@pytest.fixture(scope="module", params=[f"{head}_{variant}" for variant in VARIANTS for head in HEADS])
def detector(request: pytest.FixtureRequest) -> nn.Module:
    head = request.param.split("_svt")[0].split("_pcpvt")[0]
    torch.manual_seed(0)
    overrides = [*SMALL[head], "model.backbone.bottom_up.net.drop_path_rate=0"]
    return instantiate(load(f"{request.param}_1x", *overrides).model)


def batch(*, training: bool) -> list[dict[str, Any]]:
    """Return two images, for training with a small object of class 3 and a large one of class 70 in each."""
    found = []
    for number, (height, width) in enumerate(IMAGE_SIZES):
        generator = torch.Generator().manual_seed(number)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        entry: dict[str, Any] = {"image": image, "height": height, "width": width}
        if training:
            boxes = torch.tensor([[5.0, 7, 21, 27], [3, 2, width - 4, height - 3]])
            polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes.tolist()]
            entry["instances"] = Instances(
                (height, width),
                gt_boxes=Boxes(boxes),
                gt_classes=torch.tensor([3, 70]),
                gt_masks=PolygonMasks(polygons),
            )
        found.append(entry)
    return found


class TestRealModels:
    def test_a_training_step(self, detector: nn.Module) -> None:
        with EventStorage():
            losses = detector.train()(batch(training=True))
        names = {"loss_cls", "loss_box_reg"}
        if hasattr(detector, "roi_heads"):
            names |= {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
        assert set(losses) == names
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
        sum(losses.values()).backward()
        gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None or not gradient.count_nonzero()] == []
        assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
        detector.zero_grad()

    @torch.no_grad()
    def test_detections_on_two_images_of_different_sizes(self, detector: nn.Module) -> None:
        outputs = detector.eval()(batch(training=False))
        assert len(outputs) == 2
        for (height, width), output in zip(IMAGE_SIZES, outputs, strict=True):
            found = output["instances"]
            assert found.image_size == (height, width)
            assert 0 < len(found) <= 10
            boxes = found.pred_boxes.tensor
            assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
            assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
            assert ((found.scores >= 0) & (found.scores <= 1)).all()
            assert ((found.pred_classes >= 0) & (found.pred_classes < 80)).all()
            if hasattr(detector, "roi_heads"):
                assert tuple(found.pred_masks.shape) == (len(found), height, width)


# The YAML file


class TestYaml:
    def test_the_model_is_that_of_its_lazy_config(self) -> None:
        """Compare names, shapes, losses and detections of two models with the same random parameters."""
        ours, theirs = (instantiate(config.model) for config in (engine.load_config(YAML), load(YAML.stem)))
        assert shapes_of(ours) == shapes_of(theirs)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for model in (ours, theirs):
            torch.manual_seed(1)
            with EventStorage():
                losses = model.train()(batch(training=True))
            for parameter in model.roi_heads.box_predictor.bbox_pred.parameters():
                parameter.requires_grad_(False)  # no gradients are needed for the detections
            model.roi_heads.box_predictor.test_score_thresh = 0.012  # about 1 / 81, the scores of random models
            with torch.no_grad():
                results.append((losses, model.eval()(batch(training=False))))
        (losses, outputs), (expected_losses, expected_outputs) = results
        assert {name: loss.item() for name, loss in losses.items()} == {
            name: loss.item() for name, loss in expected_losses.items()
        }
        for output, expected in zip(outputs, expected_outputs, strict=True):
            fields, expected_fields = output["instances"].get_fields(), expected["instances"].get_fields()
            assert len(output["instances"]) == len(expected["instances"]) > 0
            assert torch.equal(fields["pred_boxes"].tensor, expected_fields["pred_boxes"].tensor)
            for name in ("scores", "pred_classes", "pred_masks"):
                assert torch.equal(fields[name], expected_fields[name])

    def test_the_schedule_is_that_of_its_lazy_config(self) -> None:
        ours, theirs = engine.load_config(YAML), load(YAML.stem)
        multipliers = [instantiate(config.lr_multiplier) for config in (ours, theirs)]
        for iteration in SCHEDULES["1x"]:
            first, second = (multiplier(iteration / ITERATIONS["1x"]) for multiplier in multipliers)
            assert first == second == pytest.approx(SCHEDULES["1x"][iteration])
        groups = []
        for config in (ours, theirs):
            config.optimizer.params.model = nn.Linear(2, 3)
            optimizer = instantiate(config.optimizer)
            assert type(optimizer) is torch.optim.AdamW
            groups.append([{**group, "params": len(group["params"])} for group in optimizer.param_groups])
        assert groups[0] == groups[1]
        for key in ("max_iter", "eval_period", "checkpointer", "amp", "seed", "init_checkpoint"):
            assert ours.train[key] == theirs.train[key], key

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_the_data_is_that_of_its_lazy_config(self, split: str) -> None:
        ours, theirs = (config.dataloader[split] for config in (engine.load_config(YAML), load(YAML.stem)))
        assert {name: ours.dataset[name] for name in ours.dataset} == {
            name: theirs.dataset[name] for name in theirs.dataset
        }
        for key in ("num_workers", "total_batch_size", "seed"):
            assert ours.get(key) == theirs.get(key), key
        first, second = instantiate(ours.mapper), instantiate(theirs.mapper)
        *flips, resize = sorted(first.augmentations.augs, key=lambda step: isinstance(step, T.ResizeShortestEdge))
        *their_flips, their_resize = second.augmentations.augs  # the order of flip and resize makes no difference
        assert list(map(str, flips)) == list(map(str, their_flips))
        assert sizes_of(resize) == sizes_of(their_resize)
        names = ["is_train", "image_format"]
        if split == "train":
            names += ["use_instance_mask", "instance_mask_format", "recompute_boxes"]
        for name in names:
            assert getattr(first, name) == getattr(second, name), name

    def test_overrides_have_the_names_of_cfgnode(self) -> None:
        keys = ["SOLVER.BASE_LR=1e-3", "MODEL.TWINS.VARIANT=pcpvt_base", "SOLVER.NO_DECAY=['norm']", "SEED=5"]
        keys += ["SOLVER.IMS_PER_BATCH=4", "INPUT.MIN_SIZE_TEST=640", "DATASETS.TEST=('mine',)", "MODEL.WEIGHTS=a.pth"]
        config = engine.load_config(YAML, keys)
        assert (config.optimizer.lr, config.train.seed, config.train.init_checkpoint) == (1e-3, 5, "a.pth")
        assert config.optimizer.params.no_decay == ["norm"]
        assert config.dataloader.train.total_batch_size == 4 and config.dataloader.train.seed == 5
        assert config.dataloader.test.dataset.name == config.dataloader.evaluator.dataset_name == "mine"
        (resize,) = instantiate(config.dataloader.test.mapper).augmentations.augs
        assert sizes_of(resize) == ({640}, 1333)
        with torch.device("meta"):
            expected = td.create_backbone("pcpvt_base")
        assert shapes_of(instantiate(config.model).backbone.bottom_up.net) == shapes_of(expected)

    def test_a_shorter_run_by_an_override(self) -> None:
        """detectron2 leaves out steps after the end of the run."""
        multiplier = instantiate(engine.load_config(YAML, ["SOLVER.MAX_ITER=1000"]).lr_multiplier)
        assert multiplier(0.999) == pytest.approx(1.0)


# The schedule

MILESTONES = st.lists(st.floats(0.001, 0.999), max_size=4).map(sorted)


@given(max_iter=st.integers(1, 300_000), milestones=MILESTONES, warmup_iters=st.integers(0, 2_000), data=st.data())
def test_schedules_of_any_length(
    max_iter: int, milestones: list[float], warmup_iters: int, data: st.DataObject
) -> None:
    """Values are in (0, 1]. After the warm-up, they are divided by 10 at each step, and no step is in the warm-up."""
    multiplier = multi_step_lr(max_iter, milestones=milestones, warmup_iters=warmup_iters)
    steps = {round(milestone * max_iter) for milestone in milestones} - {0, max_iter}
    drawn = data.draw(st.lists(st.integers(0, max_iter - 1), min_size=1, max_size=20))
    for iteration in {*drawn, *steps, *(step - 1 for step in steps)}:
        value = multiplier(iteration / max_iter)
        assert 0 < value <= 1
        if iteration >= min(warmup_iters, min(steps, default=max_iter) - 1):
            assert value == pytest.approx(0.1 ** sum(step <= iteration for step in steps))
    assert multiplier(1.0) == pytest.approx(0.1 ** len(steps))


@pytest.mark.parametrize("max_iter", [0, -5])
def test_a_run_without_iterations(max_iter: int) -> None:
    with pytest.raises(td.TwinsError, match=f"^train.max_iter={max_iter}: "):
        multi_step_lr(max_iter, milestones=[0.5], warmup_iters=5)
