"""Small label data, a config that trains a tiny Semantic FPN on it, and one training run that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detection_fixtures import ROOT, TINY_SVT, Run, run_python, shared_folder
from PIL import Image
from torch import Tensor

CONFIGS = ROOT / "configs" / "mmseg"
PHOTOS = Path(os.environ.get("TWINS_DENSE_TEST_DATA", "real-photos"))
NUM_TRAIN, NUM_VAL = 8, 5
CLASSES = ("ground", "disc", "bar")

# The published recipe with a tiny model, small crops and few iterations.
CONFIG = """\
_base_ = {base!r}
_DATASET = dict(
    type="twins_dense.SegmentationDataset",
    data_root={data_root!r},
    img_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(classes={classes!r}),
    skip_bad=False,
    indices=None,
)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(variant=dict(_delete_=True, **{variant!r})),
    neck=dict(in_channels=[16, 32, 32, 64], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=3),
)
_SMALL = dict(type="RandomResize", scale=(96, 64), ratio_range=(0.8, 1.5), keep_ratio=True)
_CROP = dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75)
_ANNOTATIONS = [dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_DATASET,
        _delete_=True,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            _SMALL,
            _CROP,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_DATASET,
        _delete_=True,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="Resize", scale=(96, 64), keep_ratio=True), *_ANNOTATIONS],
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(96 * ratio), int(64 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_cfg = dict(max_iters={iterations}, val_interval=4)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=12, by_epoch=False)]
optim_wrapper = dict(optimizer=dict(lr=3e-3))
auto_scale_lr = dict(enable=False)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
# Each iteration's own value beside the mean of the last ten, which needs the history.
log_processor = dict(
    window_size=1, custom_cfg=[dict(data_src="loss", log_name="mean_loss", method_name="mean", window_size=10)]
)
"""


def write_config(path: Path, data_root: Path, *, iterations: int = 8, more: str = "") -> Path:
    """Write a config file that trains a tiny Semantic FPN; `more` is appended to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = str(CONFIGS / "semantic_fpn_svt_small_80k.py")
    values = {"base": base, "data_root": str(data_root), "classes": CLASSES, "variant": TINY_SVT}
    path.write_text(CONFIG.format(**values, iterations=iterations) + more)
    return path


def draw_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label: ground (1), a bright disc (2), a dark bar (3), and a strip that is ignored (0)."""
    rows, columns = np.mgrid[:height, :width]
    label = np.ones((height, width), dtype=np.uint8)
    y, x = rng.integers(16, height - 16), rng.integers(16, width - 16)
    label[(rows - y) ** 2 + (columns - x) ** 2 < 150] = 2
    left = rng.integers(0, width - 8)
    label[:, left : left + 8] = 3
    label[:3] = 0
    colors = np.array([[0, 0, 255], [110, 120, 100], [230, 210, 60], [20, 30, 90]])
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(colors[label] + noise, 0, 255).astype(np.uint8), label


@pytest.fixture(scope="session")
def label_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 5 validation images of 64x80 pixels in ADE20K's layout. Not to be changed: copy it."""

    def make(root: Path) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("training", NUM_TRAIN), ("validation", NUM_VAL)):
            for kind in ("images", "annotations"):
                (root / kind / split).mkdir(parents=True)
            for number in range(count):
                image, label = draw_pair(rng, 64, 80)
                Image.fromarray(image).save(root / "images" / split / f"{number}.png")
                Image.fromarray(label).save(root / "annotations" / split / f"{number}.png")

    return shared_folder(tmp_path_factory, "labels", make)


@pytest.fixture(scope="session")
def segmentation_run(tmp_path_factory: pytest.TempPathFactory, label_data: Path) -> Run:
    """A tiny Semantic FPN after 8 iterations, trained by the command line. Not to be changed."""

    def make(folder: Path) -> None:
        config = write_config(folder / "tiny.py", label_data)
        result = run_python("-m", "twins_dense", "train", str(config), "--work-dir", str(folder / "work"))
        assert result.returncode == 0, result.stderr

    root = shared_folder(tmp_path_factory, "segmentation", make)
    return Run(root / "tiny.py", label_data, root / "work", root / "work" / "iter_8.pth")


def resized(image: np.ndarray, ratio: float) -> Tensor:
    """BGR (H, W, 3) to normalised RGB (1, 3, H', W')."""
    height, width = (round(side * ratio) for side in image.shape[:2])
    rgb = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, ::-1].astype(np.float32)
    normalised = (rgb - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    return torch.from_numpy(normalised.transpose(2, 0, 1)[None])
