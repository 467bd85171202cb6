"""A data folder and the options of a run change a config as they say."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import CONFIGS as DETECTION
from detection_fixtures import NUM_TRAIN, NUM_VAL, write_config
from mmengine.registry import DATASETS, DefaultScope
from run_fixtures import one_line_of
from segmentation_fixtures import CLASSES
from segmentation_fixtures import CONFIGS as SEGMENTATION

from twins_dense.data.layouts import DataFolder, Split
from twins_dense.errors import TwinsError
from twins_dense.frameworks import recipes
from twins_dense.frameworks.mmengine import (
    detectors,  # noqa: F401  (registers the data set)
    enable_mmseg,
    engine,
)
from twins_dense.frameworks.mmengine.config import settings_called
from twins_dense.frameworks.mmengine.engine import load_config, set_data, set_training
from twins_dense.frameworks.mmengine.schedules import num_training_images
from twins_dense.frameworks.options import TrainingOptions


def build(dataset: Any) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg" if "metainfo" in dataset else "mmengine"):
        return DATASETS.build(copy.deepcopy(dataset))


def detection_folder(root: Path, **changes: Any) -> DataFolder:
    """Describe the toy data; the number of images in `splits` is that of the files."""
    splits = {
        name: Split(root / f"{name}2017", count, ann_file=root / "annotations" / f"instances_{name}2017.json")
        for name, count in (("train", NUM_TRAIN), ("val", NUM_VAL))
    }
    folder = DataFolder(root, "COCO", "detection", ("disc", "box", "triangle"), splits, has_masks=True)
    return replace(folder, **changes)


def label_folder(root: Path, **changes: Any) -> DataFolder:
    splits = {
        name: Split(
            root / "images" / folder,
            count,
            label_dir=root / "annotations" / folder,
            image_suffix=".png",
            label_suffix=".png",
        )
        for name, folder, count in (("train", "training", 8), ("val", "validation", 5))
    }
    enable_mmseg()
    folder = DataFolder(root, "ADE20K", "segmentation", CLASSES, splits, reduce_zero_label=True)
    return replace(folder, **changes)


def detector(name: str = "mask_rcnn_svt_small_1x", *overrides: str) -> Any:
    return load_config(DETECTION / f"{name}.py", overrides)


def segmentor(name: str = "upernet_svt_small_160k") -> Any:
    return load_config(SEGMENTATION / f"{name}.py")


class TestData:
    @pytest.mark.parametrize(
        ("name", "with_masks"), [("mask_rcnn_svt_small_1x", True), ("retinanet_svt_small_3x", False)]
    )
    def test_detection(self, name: str, with_masks: bool, toy_data: Path) -> None:
        config = detector(name)
        set_data(config, detection_folder(toy_data, classes=("a", "b", "c"), has_masks=with_masks))
        assert config.model.num_classes == 3
        assert config.val_evaluator.iou_types == (("bbox", "segm") if with_masks else ("bbox",))
        train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
        assert train.with_masks == with_masks and not val.with_masks
        assert len(build(train)) == NUM_TRAIN
        assert len(build(val)) == NUM_VAL
        assert len(train.transforms) == len(detector(name).train_dataloader.dataset.transforms)

    @pytest.mark.parametrize("name", ["upernet_svt_small_160k", "semantic_fpn_pcpvt_small_80k"])
    def test_segmentation(self, name: str, label_data: Path) -> None:
        config = segmentor(name)
        set_data(config, label_folder(label_data))
        heads = dict(settings_called("num_classes", config.model, "model"))
        assert set(heads.values()) == {3} and len(heads) == (2 if name.startswith("upernet") else 1)
        for split, count in (("train", 8), ("val", 5), ("test", 5)):
            dataset = build(config[f"{split}_dataloader"].dataset)
            assert type(dataset).__name__ == "SegmentationDataset" and len(dataset) == count
            assert tuple(dataset.metainfo["classes"]) == CLASSES and dataset.metainfo["reduce_zero_label"]
            palette = dataset.metainfo["palette"]
            assert len({tuple(color) for color in palette}) == 3
            assert all(len(color) == 3 and 0 <= value <= 255 for color in palette for value in color)
        assert config.val_dataloader.dataset.test_mode and config.val_dataloader.dataset.pipeline

    def test_images_chosen_by_names(self, label_data: Path, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("1\n4\n6\n")
        folder = label_folder(label_data)
        splits = {**folder.splits, "train": replace(folder.splits["train"], names=tmp_path / "names.txt")}
        config = segmentor()
        set_data(config, replace(folder, splits=splits))
        dataset = build(config.train_dataloader.dataset)
        assert [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(len(dataset))] == ["1", "4", "6"]
        assert num_training_images(config) == 3

    def test_an_override_that_contradicts_the_data(self, toy_data: Path, tmp_path: Path) -> None:
        """Overrides have the last word, and the number of classes is checked before training, as always."""
        path = write_config(tmp_path / "tiny.py", toy_data)
        config = load_config(path, ["model.num_classes=5"])
        set_data(config, detection_folder(toy_data))
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, "3 categories", "5 classes", "model.num_classes=3")

    def test_data_that_do_not_suit_the_config(self, toy_data: Path, label_data: Path) -> None:
        boxes, labels = detection_folder(toy_data), label_folder(label_data)
        for config, folder, words in (
            (detector(), labels, ("is for detection", "data for segmentation", str(label_data))),
            (segmentor(), boxes, ("is for segmentation", "data for detection", str(toy_data))),
            (detector(), replace(boxes, has_masks=False), ("Mask R-CNN", "retinanet_svt_small_1x", str(toy_data))),
            (detector(), replace(boxes, splits={"train": boxes.splits["train"]}), ("no split 'val'", "train")),
        ):
            with pytest.raises(TwinsError) as caught:
                set_data(config, folder)
            one_line_of(caught, *words)


class TestTraining:
    def test_the_default_changes_nothing(self) -> None:
        for config in (detector(), segmentor()):
            before = config.pretty_text
            set_training(config, TrainingOptions())
            assert config.pretty_text == before

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("mask_rcnn_svt_small_1x", 256),
            ("mask_rcnn_svt_small_3x", (154, 164, 174, 184, 195, 205, 215, 225, 236, 246, 256)),
        ],
    )
    def test_size_of_detectors(self, name: str, expected: Any) -> None:
        config = detector(name)
        set_training(config, TrainingOptions(size=256))
        assert (config.model.min_size, config.model.max_size) == (expected, 427)  # 256 x 1333 / 800
        if name.endswith("3x"):
            resize, crop = config.train_dataloader.dataset.transforms[1].transforms
            assert (resize.min_size, resize.max_size) == ([128, 160, 192], 427)
            assert (crop.min_size, crop.max_size) == (123, 192)

    def test_size_of_segmentors(self) -> None:
        config = segmentor()
        set_training(config, TrainingOptions(size=256))
        assert tuple(config.model.data_preprocessor.size) == (256, 256)
        _, _, resize, crop, *_ = config.train_dataloader.dataset.pipeline
        assert (resize.scale, crop.crop_size) == ((1024, 256), (256, 256))
        for split in ("val", "test"):
            assert config[f"{split}_dataloader"].dataset.pipeline[1].scale == (1024, 256)
        scales = [step.scale for step in config.tta_pipeline[1].transforms[0]]
        assert scales == [(int(1024 * r), int(256 * r)) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]

    def test_batch_and_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = detector()
        set_training(config, TrainingOptions(batch=6))
        assert config.train_dataloader.batch_size == 6 and config.auto_scale_lr.enable
        set_training(config, TrainingOptions(batch=6, lr=3e-4))
        assert config.optim_wrapper.optimizer.lr == 3e-4 and not config.auto_scale_lr.enable
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "3")
        set_training(config, TrainingOptions(batch=6))
        assert config.train_dataloader.batch_size == 2
        with pytest.raises(TwinsError) as caught:
            set_training(config, TrainingOptions(batch=7))
        one_line_of(caught, "batch=7", "3 processes")

    def test_detections_and_anchors(self) -> None:
        config = detector("retinanet_svt_small_1x")
        set_training(config, TrainingOptions(max_dets=375, anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0)))
        assert config.model.max_dets == 375 and config.model.anchor_sizes == (8.0, 16.0, 32.0, 64.0, 128.0)
        for option in ({"max_dets": 5}, {"anchor_sizes": (8.0,)}):
            with pytest.raises(TwinsError) as caught:
                set_training(segmentor(), TrainingOptions(**option))
            one_line_of(caught, next(iter(option)), "segmentation")

    def test_start_and_frozen_part(self) -> None:
        config = detector()
        set_training(config, TrainingOptions(init="other.pth", freeze="stages:2"))
        assert (config.init, config.model.backbone["freeze"]) == ("other.pth", "stages:2")

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ({"epochs": 0}, "epochs=0"),
            ({"epochs": 1.5}, "epochs=1.5"),
            ({"size": 31}, "size=31"),
            ({"batch": -2}, "batch=-2"),
            ({"max_dets": 0}, "max_dets=0"),
            ({"lr": 0.0}, "lr=0.0"),
            ({"lr": float("nan")}, "lr=nan"),
            ({"lr": float("inf")}, "lr=inf"),
            ({"anchor_sizes": ()}, "anchor_sizes=()"),
            ({"anchor_sizes": (8.0, -1.0)}, "anchor_sizes=(8.0, -1.0)"),
            ({"recipe": "large-data"}, "recipe='large-data'"),
        ],
    )
    def test_bad_values(self, option: dict[str, Any], words: str) -> None:
        for config in (detector(), segmentor()):
            with pytest.raises(TwinsError) as caught:
                set_training(config, TrainingOptions(**option))
            one_line_of(caught, words)


class TestEpochs:
    def test_of_a_detector(self, toy_data: Path) -> None:
        """8 images, 2 in a batch: 4 iterations per epoch. The rate falls after 8/12 and 11/12 of the run."""
        config = detector()
        set_data(config, detection_folder(toy_data))
        set_training(config, TrainingOptions(epochs=60))
        warm_up, decay = config.param_scheduler
        assert config.train_cfg.max_epochs == 60
        assert (warm_up.begin, warm_up.end) == (0, 24)  # a tenth of the 240 iterations, instead of 500
        assert decay.milestones == [160, 220] and not decay.by_epoch
        assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 6
        assert config.default_hooks.logger.interval == 2

    def test_the_published_recipe_on_few_images(self, toy_data: Path, label_data: Path) -> None:
        """The warm-up fits into the run, here 12 epochs of 4 iterations; nothing else changes."""
        config = detector()
        set_data(config, detection_folder(toy_data))
        decay = copy.deepcopy(config.param_scheduler[1])
        set_training(config, TrainingOptions(recipe="published"))
        assert config.param_scheduler[0].end == 5 and config.param_scheduler[1] == decay
        config = segmentor()
        set_data(config, label_folder(label_data))
        set_training(config, TrainingOptions(recipe="published"))
        assert config.param_scheduler[0].end == 1500  # of 160,000

    def test_a_long_run_keeps_its_warm_up_and_evaluates_each_epoch(self, toy_data: Path, tmp_path: Path) -> None:
        content = json.loads((toy_data / "annotations" / "instances_train2017.json").read_text())
        content["annotations"] = [{"image_id": i, "iscrowd": 0} for i in range(4000)]
        content["annotations"] += [{"image_id": 9999, "iscrowd": 1}]  # crowds are not trained on
        (tmp_path / "many.json").write_text(json.dumps(content))
        config = detector("mask_rcnn_svt_small_3x")
        config.train_dataloader.dataset.update(ann_file="many.json", data_root=str(tmp_path))
        assert num_training_images(config) == 4000
        set_training(config, TrainingOptions(epochs=18))
        warm_up, decay = config.param_scheduler
        assert (warm_up.end, decay.milestones) == (500, [27000, 33000])  # half of 27 and 33 epochs
        assert config.train_cfg.val_interval == 1 and config.default_hooks.logger.interval == 50

    def test_of_a_segmentor(self, label_data: Path) -> None:
        """8 images, 2 in a batch: the run takes 4 iterations per epoch instead of 160,000."""
        config = segmentor()
        set_data(config, label_folder(label_data))
        set_training(config, TrainingOptions(epochs=50))
        warm_up, decay = config.param_scheduler
        assert config.train_cfg.max_iters == 200
        assert (warm_up.begin, warm_up.end, decay.begin, decay.end) == (0, 20, 20, 200)
        assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 20

    def test_one_epoch_of_one_iteration(self, label_data: Path) -> None:
        config = segmentor("semantic_fpn_svt_small_80k")
        set_data(config, label_folder(label_data))
        set_training(config, TrainingOptions(epochs=1, batch=8))
        assert config.train_cfg.max_iters == config.param_scheduler[0].end == config.train_cfg.val_interval == 1
        assert config.default_hooks.logger.interval == 1

    def test_only_some_images(self, toy_data: Path) -> None:
        config = detector()
        set_data(config, detection_folder(toy_data))
        config.train_dataloader.dataset.indices = 3
        assert num_training_images(config) == 3

    def test_images_that_cannot_be_counted(self, tmp_path: Path) -> None:
        for config in (detector(), segmentor()):
            engine.set_data_root(config, tmp_path)
            with pytest.raises(TwinsError) as caught:
                set_training(config, TrainingOptions(epochs=3))
            one_line_of(caught, "training images", "--data")
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
        with pytest.raises(TwinsError) as caught:
            set_training(detector(), TrainingOptions(epochs=3))
        one_line_of(caught, "training images")


class TestSmallData:
    @pytest.mark.parametrize("weights", [None, "backbone.pth"])
    def test_of_a_detector(self, weights: str | None, toy_data: Path) -> None:
        config = detector("mask_rcnn_svt_small_3x")
        config.model.backbone.weights = weights
        set_data(config, detection_folder(toy_data))
        set_training(config, TrainingOptions(recipe="small-data", epochs=100, max_dets=300, lr=1e-3))
        assert config.optim_wrapper.optimizer.lr == 1e-3  # instead of that of the recipe
        assert config.optim_wrapper.clip_grad.max_norm > 0 and not config.auto_scale_lr.enable
        warm_up, decay = config.param_scheduler
        assert (warm_up.end, decay.begin, decay.end, decay.T_max) == (40, 40, 400, 360)
        assert config.model.backbone.drop_path_rate == (0.0 if weights is None else 0.1)
        assert config.model.options.rpn_post_nms_top_n_test >= 2 * 300

    def test_the_batch_size_of_the_recipe(self, toy_data: Path) -> None:
        config = detector()
        config.train_dataloader.batch_size = 7
        set_data(config, detection_folder(toy_data))
        set_training(config, TrainingOptions(recipe="small-data"))
        assert config.train_dataloader.batch_size == recipes.BATCH_SIZE

    def test_a_detector_that_is_trained_already_counts_as_pretrained(self, toy_data: Path) -> None:
        rates = {}
        for init in (None, "other.pth"):
            config = detector()
            set_data(config, detection_folder(toy_data))
            set_training(config, TrainingOptions(recipe="small-data", init=init))
            rates[init] = config.optim_wrapper.optimizer.lr
        assert rates["other.pth"] < rates[None]

    def test_the_rate_follows_the_batch_size(self, toy_data: Path) -> None:
        rates = []
        for batch in (2, 8):
            config = detector()
            set_data(config, detection_folder(toy_data))
            set_training(config, TrainingOptions(recipe="small-data", batch=batch))
            assert config.train_dataloader.batch_size == batch
            rates.append(config.optim_wrapper.optimizer.lr)
        assert rates[1] == pytest.approx(2 * rates[0], rel=0.05)

    def test_overrides_have_the_last_word(self, toy_data: Path) -> None:
        config = detector(
            "mask_rcnn_svt_small_1x",
            "optim_wrapper.clip_grad={'max_norm': 7}",
            "optim_wrapper.optimizer.lr=2e-3",
            "param_scheduler.0.end=5",
        )
        set_data(config, detection_folder(toy_data))
        set_training(config, TrainingOptions(recipe="small-data", epochs=9, lr=1e-3))
        assert (config.optim_wrapper.clip_grad.max_norm, config.param_scheduler[0].end) == (7, 5)
        assert config.optim_wrapper.optimizer.lr == 2e-3
        assert config.train_cfg.max_epochs == 9

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    def test_it_trains(self, kind: str, toy_data: Path, tmp_path: Path) -> None:
        config = load_config(write_config(tmp_path / "tiny.py", toy_data, kind=kind))
        set_data(config, detection_folder(toy_data))
        set_training(config, TrainingOptions(recipe="small-data", epochs=2, batch=4))
        runner = engine.train(config, tmp_path / "run")
        assert (runner.epoch, runner.iter) == (2, 4)
        assert (tmp_path / "run" / "epoch_2.pth").is_file()

    def test_a_segmentor_trains(self, label_data: Path, tmp_path: Path) -> None:
        from segmentation_fixtures import write_config

        config = load_config(write_config(tmp_path / "tiny.py", label_data))
        set_data(config, label_folder(label_data))
        set_training(config, TrainingOptions(recipe="small-data", epochs=2, size=32))
        runner = engine.train(config, tmp_path / "run")
        assert runner.iter == 8 and (tmp_path / "run" / "iter_8.pth").is_file()
