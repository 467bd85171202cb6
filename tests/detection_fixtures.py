"""Small models, data sets and configs for the detection tests, and a tiny training run that they share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "torchvision"
# 100 training and 50 validation photos of COCO 2017, in COCO's layout. Their licences keep them out of the repository.
COCO_MINI = Path(os.environ.get("TWINS_DENSE_TEST_DATA", "real-photos")) / "coco_mini"
NO_PHOTOS = "needs real photos: set TWINS_DENSE_TEST_DATA to the folder that holds coco_mini"
NUM_TRAIN, NUM_VAL, SIZE = 8, 5, 64

TINY_SVT: dict[str, Any] = {
    "name": "tiny",
    "dims": (16, 32, 32, 64),
    "num_heads": (1, 2, 2, 4),
    "mlp_ratios": (2, 2, 2, 2),
    "depths": (1, 1, 1, 1),
    "sr_ratios": (8, 4, 2, 1),
    "window_size": 7,
}
FEW_PROPOSALS = {
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
    "box_score_thresh": 0.0,
}
FEW_CANDIDATES = {"topk_candidates": 50, "detections_per_img": 10, "score_thresh": 0.0}


def tiny_model(kind: str = "TwinsMaskRCNN", *, num_classes: int = 3, **settings: Any) -> dict[str, Any]:
    """Return the model config of a detector that trains in milliseconds, for images of about 64 pixels."""
    return {
        "type": kind,
        "backbone": {"variant": TINY_SVT, "drop_path_rate": 0.2, "weights": None},
        "num_classes": num_classes,
        "min_size": 64,
        "max_size": 96,
        "fpn_channels": 32,
        "options": dict(FEW_PROPOSALS if kind == "TwinsMaskRCNN" else FEW_CANDIDATES),
        **settings,
    }


def build_tiny(kind: str = "TwinsMaskRCNN", **settings: Any) -> Any:
    from mmengine.registry import MODELS

    import twins_dense.frameworks.mmengine.detectors  # noqa: F401  (registers the models)

    return MODELS.build(tiny_model(kind, **settings))


# A complete training config, which tests vary by overrides or appended lines.
CONFIG = """\
default_scope = "mmengine"
custom_imports = dict(imports=["twins_dense.frameworks.mmengine.detectors"])
model = {model!r}
_dataset = dict(type="CocoDetectionDataset", data_root={data_root!r}, skip_bad=False, strict=False)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        ann_file="annotations/instances_train2017.json",
        image_dir="train2017",
        training=True,
        with_masks=True,
        transforms=[dict(type="RandomHorizontalFlip", p=0.5)],
        **_dataset,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        ann_file="annotations/instances_val2017.json",
        image_dir="val2017",
        training=False,
        with_masks=False,
        **_dataset,
    ),
)
val_evaluator = dict(type="CocoMetric", iou_types=("bbox", "segm"))
val_cfg = dict()
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = val_cfg
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=6),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end={epochs}, milestones=[3], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", interval=1),
)
# Log the value of each iteration; MMEngine's default is the mean over the last 10. That mean is logged as well, because
# it needs the history of the values.
log_processor = dict(
    window_size=1, custom_cfg=[dict(data_src="loss", log_name="mean_loss", method_name="mean", window_size=10)]
)
custom_hooks = []
randomness = dict(seed=0)
"""


def write_config(path: Path, data_root: Path, *, epochs: int = 1, more: str = "", **model: Any) -> Path:
    """Write a config file that trains a tiny detector on toy data; `more` is appended to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONFIG.format(model=tiny_model(**model), data_root=str(data_root), epochs=epochs) + more)
    return path


@dataclass(frozen=True)
class Run:
    """The files of a finished run: config, data, work directory and the checkpoint of the last epoch."""

    config: Path
    data: Path
    work_dir: Path
    checkpoint: Path


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that all processes of a test run share; the first one to ask creates it while the others wait."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    root = factory.getbasetemp().parent if is_worker else factory.getbasetemp()
    folder, done = root / f"shared_{name}", root / f"shared_{name}.done"
    with FileLock(root / f"shared_{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a failed attempt
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy data with 8 training and 5 validation images of 64x64 pixels. Tests must not change it; copy it instead."""
    from twins_dense.data.toy import make_toy_coco

    def make(folder: Path) -> None:
        make_toy_coco(folder / "toy", num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=SIZE)

    return shared_folder(tmp_path_factory, "data", make) / "toy"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Run:
    """A tiny Mask R-CNN after 2 epochs of 4 iterations, trained by the command line. Tests must not change it."""

    def make(folder: Path) -> None:
        config = write_config(folder / "tiny.py", toy_data, epochs=2)
        result = run_python("-m", "twins_dense", "train", str(config), "--work-dir", str(folder / "work"))
        assert result.returncode == 0, result.stderr

    root = shared_folder(tmp_path_factory, "run", make)
    return Run(root / "tiny.py", toy_data, root / "work", root / "work" / "epoch_2.pth")


def child_environment() -> dict[str, str]:
    """Return the environment for a child process: the same number of threads (see conftest.py) and no GPU."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}


def run_python(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the current Python interpreter with arguments, on the CPU, and wait for it."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def read_scalars(work_dir: Path) -> list[list[dict[str, Any]]]:
    """Return the logged records of a work directory: one list per start of the run, in order."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """Return the polygon of a box as a COCO segmentation."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write_coco(
    root: Path,
    images: Mapping[int, np.ndarray],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> dict[str, str]:
    """Write PNG images by id and an annotation file, and return `ann_file`, `image_dir` and `data_root`.

    Annotations only need `image_id`, `category_id` and `bbox`; missing ids are filled in.
    """
    (root / "images").mkdir(parents=True)
    entries = []
    for image_id, pixels in images.items():
        name = f"{image_id}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        entries.append({"id": image_id, "file_name": name, "width": pixels.shape[1], "height": pixels.shape[0]})
    content = {
        "images": entries,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
    }
    (root / "things.json").write_text(json.dumps(content))
    return {"ann_file": "things.json", "image_dir": "images", "data_root": str(root)}


def assert_same_detections(
    found: Any,
    expected: Any,
    *,
    limit: int,
    box_rtol: float = 1e-4,
    box_atol: float = 1e-3,
    score_rtol: float = 1e-4,
) -> None:
    """Compare two sets of detections for the same image, in any order.

    Rounding errors, which depend on the processor, decide the order of nearly equal scores. Therefore, detections are
    matched one to one, wherever they are in the order: partners need the same label and nearly the same box and score.
    Rounding may also decide which of two nearly equal scores is the last of the `limit` best. So a detection may only
    be without a partner if its score is nearly that of the last one.

    Args:
        found: Detections with `boxes` (N, 4), `scores` (N,) and `labels` (N,).
        expected: Detections with the same fields.
        limit: Largest possible number of detections.
        box_rtol: Relative tolerance of the corners.
        box_atol: Absolute tolerance of the corners in pixels.
        score_rtol: Relative tolerance of the scores. The scores must differ from each other by much more than this,
            which is not the case for a newly initialised detector.
    """
    assert 0 < len(found.scores) <= limit and 0 < len(expected.scores) <= limit
    fits = (
        (found.labels[:, None] == expected.labels)
        & torch.isclose(found.scores[:, None], expected.scores, rtol=score_rtol, atol=0)
        & torch.isclose(found.boxes[:, None], expected.boxes, rtol=box_rtol, atol=box_atol).all(2)
    )
    partners: dict[int, int] = {}  # rows of `found` by rows of `expected`

    def has_partner(row: int, tried: set[int]) -> bool:
        """Find a partner for one more row; rows that already have a partner may switch to another one."""
        for column in fits[row].nonzero().flatten().tolist():
            if column not in tried:
                tried.add(column)
                if column not in partners or has_partner(partners[column], tried):
                    partners[column] = row
                    return True
        return False

    alone = [row for row in range(len(fits)) if not has_partner(row, set())]
    others_alone = [column for column in range(fits.shape[1]) if column not in partners]
    assert at_the_cut(found.scores[alone], expected.scores, limit, score_rtol), (found, expected)
    assert at_the_cut(expected.scores[others_alone], found.scores, limit, score_rtol), (found, expected)
    assert len(partners) > max(fits.shape) / 2, (found, expected)


def at_the_cut(scores: Tensor, others: Tensor, limit: int, rtol: float) -> bool:
    """Return whether no score exceeds the lowest of the others, which must have reached the limit."""
    last = others.min() if len(others) == limit else torch.tensor(0.0)
    return bool((scores <= last * (1 + rtol)).all())
