"""A data folder and the options of a run change the right settings of LazyConfigs and of translated YAML files."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from cli_fixtures import twins
from d2_fixtures import CONFIGS, HEADS, MARKS, clean_detectron2, engine, write_lazy  # noqa: F401  (a fixture)
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

import twins_dense as td
from twins_dense.data.layouts import DataFolder, Split
from twins_dense.errors import TwinsError
from twins_dense.frameworks import recipes
from twins_dense.frameworks.detectron2.cfg_node import read_dump
from twins_dense.frameworks.detectron2.config import check_settings
from twins_dense.frameworks.detectron2.launch import fit_device
from twins_dense.frameworks.options import TrainingOptions

pytestmark = MARKS

NUM_TRAIN = 7  # images with an instance in the folder below
SHIPPED = ["mask_rcnn_svt_small_1x.py", "retinanet_svt_small_3x.py", "mask_rcnn_svt_small_1x.yaml"]
EIGHTY_CLASSES = {"mask_rcnn": "model.roi_heads.num_classes = 80\n", "retinanet": "model.num_classes = 80\n"}
POLYGON = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
RUN_LENGTHS = {"size": [48, 64], "counts": [0, 9, 3063]}


def write_annotations(path: Path, num_images: int, segmentation: Any = POLYGON) -> None:
    """Write an annotation file for images 1 to `num_images`; the last two have no instance, the last one a crowd."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 64, "height": 48} for number in range(1, num_images + 1)
    ]
    annotations = [
        {
            "id": number,
            "image_id": number if number < num_images - 1 else num_images,
            "category_id": 1 + number % 2,
            "bbox": [1, 1, 8, 8],
            "segmentation": segmentation,
            "area": 32,
            "iscrowd": int(number >= num_images - 1),
        }
        for number in range(1, num_images)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(("a", "b"), 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def data_folder(root: Path, *, has_masks: bool = True, segmentation: Any = POLYGON, **changes: Any) -> DataFolder:
    splits = {}
    for name, num_images in (("train", NUM_TRAIN + 2), ("val", 4)):
        ann_file = root / f"{name}.json"
        write_annotations(ann_file, num_images, segmentation)
        splits[name] = Split(image_dir=root / name, num_images=num_images, ann_file=ann_file)
    fields = {"root": root, "layout": "COCO", "task": "detection", "classes": ("a", "b"), "splits": splits}
    return DataFolder(**{**fields, "has_masks": has_masks, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return data_folder(tmp_path / "mine")


def load(name: str, *overrides: str) -> Any:
    return engine.load_config(CONFIGS / name, overrides)


def trained(name: str, folder: DataFolder | None = None, *overrides: str, **options: Any) -> Any:
    """Return a shipped config with a data folder and options applied."""
    config = load(name, *overrides)
    if folder is not None:
        engine.set_data(config, folder)
    engine.set_training(config, TrainingOptions(**options))
    check_settings(config)
    return config


def build(config: Any) -> nn.Module:
    """Build a model without memory for its parameters, which detectron2's `build_model` would move to the CPU."""
    with torch.device("meta"), mock.patch.object(nn.Module, "to", lambda module, *_: module):
        return instantiate(config.model)


def num_classes_of(model: nn.Module) -> set[int]:
    """Return the number of classes of a model by the shapes of its predictors."""
    if not hasattr(model, "roi_heads"):
        return {model.num_classes, model.head.cls_score.out_channels // 9}
    predictor = model.roi_heads.box_predictor
    return {
        model.roi_heads.num_classes,
        predictor.num_classes,
        predictor.cls_score.out_features - 1,
        predictor.bbox_pred.out_features // 4,
        model.roi_heads.mask_head.predictor.out_channels,
    }


@pytest.mark.parametrize("name", SHIPPED)
class TestData:
    def test_files_and_names(self, name: str, folder: DataFolder) -> None:
        config = trained(name, folder)
        for split, key in (("train", "train"), ("val", "test")):
            dataset = config.dataloader[key].dataset
            assert dataset.name == f"mine_{split}" and dataset.data_root is None
            assert (dataset.ann_file, dataset.image_dir) == (
                str(folder.splits[split].ann_file),
                str(folder.splits[split].image_dir),
            )
        assert config.dataloader.evaluator.dataset_name == "mine_val"

    def test_classes(self, name: str, folder: DataFolder) -> None:
        assert num_classes_of(build(trained(name, folder))) == {2}

    def test_mask_format(self, name: str, tmp_path: Path) -> None:
        formats = []
        for number, segmentation in enumerate((POLYGON, RUN_LENGTHS)):
            config = trained(name, data_folder(tmp_path / str(number), segmentation=segmentation))
            formats.append(instantiate(config.dataloader.train.mapper).instance_mask_format)
        assert formats == ["polygon", "polygon" if name.startswith("retinanet") else "bitmask"]

    def test_boxes_only(self, name: str, tmp_path: Path) -> None:
        folder, config = data_folder(tmp_path, has_masks=False, segmentation=[]), load(name)
        if name.startswith("retinanet"):
            engine.set_data(config, folder)
            assert config.dataloader.train.dataset.ann_file
        else:
            with pytest.raises(TwinsError, match=r"has boxes but no masks.*retinanet_svt_small_1x"):
                engine.set_data(config, folder)

    def test_segmentation(self, name: str, folder: DataFolder, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match=r"is for segmentation.*mmseg/"):
            engine.set_data(load(name), data_folder(tmp_path, task="segmentation"))

    def test_a_missing_split(self, name: str, folder: DataFolder, tmp_path: Path) -> None:
        only_train = data_folder(tmp_path / "b", splits={"train": folder.splits["train"]})
        with pytest.raises(TwinsError, match="has no 'val' split, only 'train'"):
            engine.set_data(load(name), only_train)


class TestLength:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_epochs(self, name: str, folder: DataFolder) -> None:
        """7 images with an instance at a batch size of 3 are 3 iterations; images without one are left out."""
        config = trained(name, folder, epochs=80, batch=3)
        settings = config.train
        assert settings.max_iter == 240
        assert settings.eval_period == settings.checkpointer.period == 8 * 3  # ten times in the run
        assert settings.log_period == 2
        assert config.dataloader.train.total_batch_size == 3
        schedule = instantiate(config.lr_multiplier)
        # The warm-up takes a tenth of the run: 24 iterations. The milestones of the 1x and the 3x schedule follow.
        assert schedule(24 / 240) == 1.0 and schedule(12 / 240) == pytest.approx(0.5005)
        first, second = (27 / 36, 33 / 36) if "3x" in name else (8 / 12, 11 / 12)
        for start, value in ((first, 0.1), (second, 0.01)):
            assert schedule(start) == pytest.approx(value)
            assert schedule(start - 0.5 / 240) == pytest.approx(value * 10)

    @pytest.mark.parametrize(("name", "epochs"), [(SHIPPED[0], 12), (SHIPPED[1], 36)])
    def test_a_config_keeps_its_epochs(self, name: str, epochs: int, folder: DataFolder) -> None:
        config = trained(name, folder)
        assert config.train.max_iter == epochs  # 7 images are one iteration at the batch size of 16
        assert config.train.eval_period == config.train.checkpointer.period == 1
        assert trained(name, folder, batch=2).train.max_iter == epochs * 4
        assert trained(name, folder, "dataloader.train.total_batch_size=2").train.max_iter == epochs * 4

    @pytest.mark.parametrize("name", SHIPPED[:2])
    def test_overrides_have_the_last_word(self, name: str, folder: DataFolder) -> None:
        overrides = [
            "train.max_iter=100",
            "train.eval_period=7",
            "dataloader.train.total_batch_size=5",
            "optimizer.lr=0.5",
            "dataloader.test.mapper.augmentations.0.max_size=99",
            "model.backbone.bottom_up.net.drop_path_rate=0.4",
            "dataloader.train.dataset.name=other",
        ]
        for recipe in ("published", "small-data"):
            config = trained(name, folder, *overrides, epochs=3, batch=2, lr=0.1, size=64, recipe=recipe)
            assert (config.train.max_iter, config.train.eval_period, config.optimizer.lr) == (100, 7, 0.5)
            assert config.dataloader.train.total_batch_size == 5
            assert config.dataloader.test.mapper.augmentations[0].max_size == 99
            assert config.model.backbone.bottom_up.net.drop_path_rate == 0.4
            assert config.dataloader.train.dataset.name == "other"

    def test_overrides_of_the_model_in_yaml(self, folder: DataFolder) -> None:
        overrides = ("MODEL.ROI_HEADS.NUM_CLASSES=5", "INPUT.MIN_SIZE_TEST=99")
        cfg = read_dump(trained(SHIPPED[2], folder, *overrides, size=64).model.cfg)
        assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.INPUT.MIN_SIZE_TEST) == (5, 99)

    def test_a_run_without_evaluation_gets_none(self, folder: DataFolder) -> None:
        assert trained(SHIPPED[0], folder, "train.eval_period=0", epochs=3).train.eval_period == 0

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.max_iter=soon", "train.max_iter='soon'"),
            ("train.log_period=often", "train.log_period='often'"),
            ("train.iterations_per_epoch=0", "train.iterations_per_epoch=0: choose a whole number, 1 or more, or null"),
            ("dataloader.train.total_batch_size=0", "total_batch_size=0: choose a whole number, 1 or more"),
            ("dataloader.train.total_batch_size=few", "total_batch_size='few': choose a whole number, 1 or more"),
        ],
    )
    def test_bad_overrides(self, override: str, message: str, folder: DataFolder) -> None:
        with pytest.raises(TwinsError, match=message):
            trained(SHIPPED[0], folder, override, epochs=3)

    def test_images_without_instances(self, folder: DataFolder) -> None:
        config = trained(SHIPPED[1], folder, "dataloader.train.dataset.filter_empty=False", epochs=2, batch=1)
        assert config.train.max_iter == 2 * (NUM_TRAIN + 2)
        config = trained(SHIPPED[1], folder, "dataloader.train.dataset.indices=3", epochs=2, batch=1)
        assert config.train.max_iter == 2 * 3

    def test_the_batch_size_of_a_run_of_unknown_epochs(self) -> None:
        """The number of images stays the same."""
        config = trained(SHIPPED[2], None, batch=3)
        assert config.train.max_iter == math.ceil(87960 * 16 / 3)

    def test_the_data_of_the_config(self, tmp_path: Path) -> None:
        """A config without a data folder is read as well."""
        write_annotations(tmp_path / "a.json", NUM_TRAIN + 2)
        overrides = [
            f"dataloader.train.dataset.data_root={tmp_path}",
            "dataloader.train.dataset.image_dir=.",
            "dataloader.train.dataset.ann_file=",
        ]
        assert trained(SHIPPED[0], None, *overrides[:2], f"{overrides[2]}a.json", epochs=5, batch=7).train.max_iter == 5
        with pytest.raises(TwinsError, match="no such file"):
            trained(SHIPPED[0], None, *overrides[:2], f"{overrides[2]}b.json", epochs=1)


class TestOptions:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_nothing_given(self, name: str) -> None:
        config = trained(name)
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(load(name))

    @pytest.mark.parametrize("name", SHIPPED)
    def test_learning_rate(self, name: str, folder: DataFolder) -> None:
        config = trained(name, folder, lr=3e-5, batch=2)
        assert config.optimizer.lr == 3e-5 and not config.train.auto_scale_lr.enabled

    @pytest.mark.parametrize("name", SHIPPED)
    def test_size(self, name: str) -> None:
        config = trained(name, size=400)
        train, test = (instantiate(config.dataloader[split].mapper).augmentations.augs for split in ("train", "test"))
        resize = next(step for step in reversed(train) if hasattr(step, "short_edge_length"))
        expected = [240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400] if "3x" in name else [400]
        assert sorted(set(resize.short_edge_length)) == expected and resize.max_size == 666
        (resize,) = test
        assert set(resize.short_edge_length) == {400} and resize.max_size == 666
        if "3x" in name:
            inner, crop = train[1].aug.augs
            assert list(inner.short_edge_length) == [200, 250, 300] and list(crop.crop_size) == [192, 300]

    @pytest.mark.parametrize("name", SHIPPED)
    def test_max_dets(self, name: str) -> None:
        config = trained(name, max_dets=1234)
        assert config.dataloader.evaluator.max_dets_per_image == 1234
        model = build(config)
        if hasattr(model, "roi_heads"):
            assert model.roi_heads.box_predictor.test_topk_per_image == 1234
            assert model.proposal_generator.post_nms_topk == {True: 1000, False: 1234}
        else:
            assert model.max_detections_per_image == 1234

    def test_the_metric_counts_what_the_detector_returns(self) -> None:
        """One override of the detector changes the metric too."""
        config = load(SHIPPED[0], "model.roi_heads.box_predictor.test_topk_per_image=300")
        assert config.dataloader.evaluator.max_dets_per_image == 300
        config = load(SHIPPED[1], "model.max_detections_per_image=300")
        assert config.dataloader.evaluator.max_dets_per_image == 300
        assert load(SHIPPED[2], "TEST.DETECTIONS_PER_IMAGE=300").dataloader.evaluator.max_dets_per_image == 300

    @pytest.mark.parametrize("name", SHIPPED)
    def test_anchor_sizes(self, name: str) -> None:
        config = trained(name, anchor_sizes=(8, 16, 32, 64, 128.5))
        if name.endswith("yaml"):
            assert read_dump(config.model.cfg).MODEL.ANCHOR_GENERATOR.SIZES == [[8], [16], [32], [64], [128.5]]
            return
        generator = instantiate(config.model.get("proposal_generator", config.model).anchor_generator)
        scales = [2 ** (step / 3) for step in range(3)] if name.startswith("retinanet") else [1.0]
        for size, cells in zip((8, 16, 32, 64, 128.5), generator.cell_anchors, strict=True):
            areas = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
            expected = torch.tensor([(size * scale) ** 2 for scale in scales for _ in range(3)], dtype=torch.float32)
            torch.testing.assert_close(areas, expected)

    @pytest.mark.parametrize("name", SHIPPED)
    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"anchor_sizes": (8.0, 16.0)}, "anchor_sizes=(8.0, 16.0): give 5 sizes, one for each level"),
            ({"anchor_sizes": (8.0, 16.0, 32.0, 0.0, 64.0)}, "positive number"),
            ({"epochs": 0}, "epochs=0: choose a whole number, 1 or more"),
            ({"batch": 0}, "batch=0: choose a whole number, 1 or more"),
            ({"size": 31}, "size=31: choose a whole number, 32 or more"),
            ({"max_dets": 0}, "max_dets=0: choose a whole number, 1 or more"),
            ({"lr": -1.0}, "lr=-1.0: choose a positive number"),
            ({"lr": math.nan}, "lr=nan: choose a positive number"),
            ({"recipe": "big-data"}, "recipe='big-data'"),
        ],
    )
    def test_bad_values(self, name: str, option: dict[str, Any], message: str, folder: DataFolder) -> None:
        with pytest.raises(TwinsError, match=re.escape(message)):
            trained(name, folder, **option)


class TestSmallData:
    @pytest.mark.parametrize("name", SHIPPED)
    @pytest.mark.parametrize("pretrained", [False, True])
    def test_settings(self, name: str, pretrained: bool, folder: DataFolder) -> None:
        key = "MODEL.TWINS.WEIGHTS" if name.endswith("yaml") else "model.backbone.bottom_up.net.weights"
        overrides = [f"{key}=weights.pth"] if pretrained else []
        config = trained(name, folder, *overrides, recipe="small-data", epochs=10, max_dets=400)
        batch_size = config.dataloader.train.total_batch_size
        assert batch_size == recipes.BATCH_SIZE and config.train.max_iter == 10 * math.ceil(NUM_TRAIN / batch_size)
        assert config.train.clip_norm == recipes.CLIP_NORM and not config.train.auto_scale_lr.enabled
        assert config.optimizer.lr == {True: 7.1e-5, False: 2.1e-4}[pretrained]
        schedule = instantiate(config.lr_multiplier)
        assert schedule(0.0) == recipes.WARMUP_FACTOR and schedule(0.1) == 1.0
        assert schedule(0.55) == pytest.approx((1 + recipes.FINAL_FACTOR) / 2)  # half of the cosine
        assert schedule(1 - 1e-9) == pytest.approx(recipes.FINAL_FACTOR)
        if pretrained:  # there is no such file
            (config.model if name.endswith("yaml") else config.model.backbone.bottom_up.net).weights = None
        model = build(config)
        net = model.backbone.bottom_up.net
        assert net.blocks[-1][-1].drop_path_rate == pytest.approx(recipes.DROP_PATH_RATE[pretrained])
        if hasattr(model, "roi_heads"):
            assert model.roi_heads.batch_size_per_image == recipes.ROI_BATCH
            assert model.proposal_generator.pre_nms_topk == {True: 1000, False: 1000}
            assert model.proposal_generator.post_nms_topk == {True: 800, False: 800}

    @pytest.mark.parametrize("name", SHIPPED)
    def test_options_come_first(self, name: str, folder: DataFolder) -> None:
        config = trained(name, folder, recipe="small-data", batch=8, lr=5e-4, epochs=3)
        assert (config.dataloader.train.total_batch_size, config.optimizer.lr, config.train.max_iter) == (8, 5e-4, 3)
        assert trained(name, folder, recipe="small-data", batch=16).optimizer.lr == 6e-4
        assert trained(name, folder, recipe="small-data", batch=4, init="a.pth").optimizer.lr == 1e-4


class TestTransferOptions:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_init(self, name: str) -> None:
        assert trained(name, init="a.pth").train.init == "a.pth"

    @pytest.mark.parametrize("name", SHIPPED)
    def test_weights(self, name: str, folder: DataFolder) -> None:
        config = trained(name, folder, weights="no/such.pth", recipe="small-data")
        assert config.optimizer.lr == 7.1e-5
        with pytest.raises(TwinsError, match=r"no/such\.pth"):
            build(config)

    @pytest.mark.parametrize("name", SHIPPED)
    def test_freeze(self, name: str) -> None:
        net = build(trained(name, freeze="stages:2")).backbone.bottom_up.net
        trainable = [any(parameter.requires_grad for parameter in stage.parameters()) for stage in net.blocks]
        assert trainable == [False, False, True, True]

    def test_freeze_another_backbone(self) -> None:
        config = load(SHIPPED[0])
        del config.model.backbone.bottom_up.net
        with pytest.raises(TwinsError, match=r"no model.backbone.bottom_up.net, which freeze='backbone' is for"):
            engine.set_training(config, TrainingOptions(freeze="backbone"))


def test_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    config = load(SHIPPED[0], "dataloader.test.num_workers=2")
    fit_device(config)
    assert (config.dataloader.train.num_workers, config.dataloader.test.num_workers) == (3, 2)


@pytest.mark.parametrize("head", HEADS)
def test_one_command(head: str, tmp_path: Path, toy_data: Path) -> None:
    """A config for 80 classes is trained on a folder, and the work directory is a model."""
    config = write_lazy(tmp_path / "tiny.py", tmp_path / "nowhere", head, more=EIGHTY_CLASSES[head])
    options = ("--recipe", "small-data", "--epochs", 1, "--batch", 4, "--size", 64, "--max-dets", 120)
    options += ("--anchor-sizes", "8,16,32,64,128", "train.eval_period=2")
    result = twins("train", config, "--data", toy_data, "--work-dir", tmp_path / "run", *options)
    assert result.code == 0, result.err
    model = td.load_model(tmp_path / "run")
    assert list(model.classes) == ["circle", "rectangle", "triangle"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "coco/bbox_AP" in metrics["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("grad_norm" in line for line in lines)
    content = engine.load_config(tmp_path / "run" / "config.yaml")
    assert content.train.max_iter == 2 and content.dataloader.train.dataset.ann_file.startswith(str(toy_data))
    assert content.dataloader.evaluator.max_dets_per_image == 120
