"""The detection configs that come with the package: found, built, and equal to the published recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detection_fixtures import CONFIGS
from mmengine.registry import MODELS

import twins_dense as td
from twins_dense.frameworks.mmengine.detectors import TwinsMaskRCNN, TwinsRetinaNet
from twins_dense.frameworks.mmengine.engine import load_config

CONFIG_FILES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)


def test_all_configs_are_found() -> None:
    names = {path.stem for path in CONFIG_FILES}
    assert len(CONFIG_FILES) == len(names) == 24
    assert names == {
        f"{detector}_{variant}_{schedule}"
        for detector in ("mask_rcnn", "retinanet")
        for variant in td.list_variants()
        for schedule in ("1x", "3x")
    }


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
class TestConfig:
    def test_model(self, path: Path) -> None:
        config = load_config(path)
        with torch.device("meta"):
            model = MODELS.build(config.model)
        is_mask_rcnn = path.stem.startswith("mask_rcnn")
        assert type(model) is (TwinsMaskRCNN if is_mask_rcnn else TwinsRetinaNet)
        bottom_up = model.detector.backbone.bottom_up
        assert bottom_up.spec is td.get_spec(path.stem.removeprefix("mask_rcnn_").removeprefix("retinanet_")[:-3])
        assert bottom_up.pyramid.names == (("c2", "c3", "c4", "c5") if is_mask_rcnn else ("c3", "c4", "c5"))
        assert model.num_classes == 80
        head = model.detector.roi_heads.box_predictor if is_mask_rcnn else model.detector.head.classification_head
        # With the background, or for each of 9 anchors.
        assert (head.cls_score.out_features == 81) if is_mask_rcnn else (head.cls_logits.out_channels == 9 * 80)
        assert model.detector.backbone.out_channels == 256
        sides = model.detector.transform.min_size
        scales = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
        assert tuple(sides) == (scales if path.stem.endswith("3x") else (800,))
        assert model.detector.transform.max_size == 1333

    def test_schedule(self, path: Path) -> None:
        config = load_config(path)
        is_long = path.stem.endswith("3x")
        assert config.train_cfg.max_epochs == (36 if is_long else 12)
        warm_up, steps = config.param_scheduler
        assert (warm_up.type, warm_up.start_factor, warm_up.begin, warm_up.end) == ("LinearLR", 0.001, 0, 500)
        assert warm_up.by_epoch is False and steps.by_epoch is True
        assert (steps.type, steps.gamma) == ("MultiStepLR", 0.1)
        assert list(steps.milestones) == ([27, 33] if is_long else [8, 11])
        assert "end" not in steps  # MMEngine stops decaying there, also for who trains longer
        optimizer = config.optim_wrapper.optimizer
        assert optimizer.type == "AdamW"
        assert optimizer.lr == (1e-4 if is_long or path.stem.startswith("retinanet") else 2e-4)
        assert optimizer.weight_decay == (0.05 if is_long else 1e-4)
        assert config.auto_scale_lr == {"enable": True, "base_batch_size": 16}
        assert config.train_dataloader.batch_size == 2  # on each of 8 GPUs

    def test_data(self, path: Path) -> None:
        config = load_config(path)
        with_masks = path.stem.startswith("mask_rcnn")
        assert config.train_dataloader.dataset.with_masks is with_masks
        assert config.val_evaluator.iou_types == (("bbox", "segm") if with_masks else ("bbox",))
        assert config.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
        assert config.val_dataloader.dataset.ann_file == "annotations/instances_val2017.json"
        assert config.train_dataloader.dataset.training and not config.val_dataloader.dataset.training
        transforms = [entry.type for entry in config.train_dataloader.dataset.transforms]
        assert transforms == ["RandomHorizontalFlip", *(["RandomApply"] if path.stem.endswith("3x") else [])]

    def test_header_names_the_command(self, path: Path) -> None:
        header = path.read_text().split('"""')[1]
        assert f"-m twins_dense train torchvision/{path.stem} " in header
        assert path.stem.split("_")[-1] in header and path.stem[:-3].split("net_")[-1].split("rcnn_")[-1] in header
