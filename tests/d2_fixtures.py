"""Tiny detectron2 configs. Test files that import this module are skipped if detectron2 is not installed.

The name of this module sorts before `detectron2`, so that sorted imports in test files import it first.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contracts import VARIANTS
from detection_fixtures import ROOT, TINY_SVT

pytest.importorskip("detectron2", reason="detectron2 is not installed; see docs/detectron2.md")
with warnings.catch_warnings():
    # detectron2 uses it during its import.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
    from detectron2.data import transforms as T
    from detectron2.utils.logger import setup_logger

    import twins_dense.frameworks.detectron2.engine as engine  # noqa: F401  (for the test files)

CONFIGS = ROOT / "configs" / "detectron2"
HEADS = ("mask_rcnn", "retinanet")
NAMES = [f"{head}_{variant}_{schedule}" for head in HEADS for variant in VARIANTS for schedule in ("1x", "3x")]

# The value of `pytestmark` in test files.
MARKS = [
    pytest.mark.detectron2,
    # <who warns, why we cannot avoid it, when the exception can be removed>
    # detectron2's anchor generator calls torch.meshgrid without `indexing`; remove this once detectron2 passes it.
    pytest.mark.filterwarnings("ignore:torch.meshgrid. in an upcoming release:UserWarning"),
    # Its evaluator calls logger.warn; remove this once detectron2 calls logger.warning.
    pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning"),
    # detectron2 draws polygons with pycocotools.mask.decode, which relies on a feature that NumPy 2 deprecates; remove
    # this once pycocotools does not.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

# A complete experiment on toy data: one of our configs with smaller settings. `{more}` comes last.
LAZY = """\
from detectron2.config import LazyCall, LazyConfig
from detectron2.layers import ShapeSpec

dataloader, lr_multiplier, model, optimizer, train = LazyConfig.load(
    {base!r}, ("dataloader", "lr_multiplier", "model", "optimizer", "train")
)
for _split, _name in (("train", "train2017"), ("test", "val2017")):
    dataloader[_split].num_workers = 0
    dataloader[_split].dataset.update(
        name="toy_" + _split,
        data_root={data_root!r},
        ann_file="annotations/instances_" + _name + ".json",
        image_dir=_name,
    )
dataloader.train.total_batch_size = 2
# The last augmentation resizes to the input size of the model.
dataloader.train.mapper.augmentations[-1].short_edge_length = [48, 64, 80]
dataloader.test.mapper.augmentations[-1].short_edge_length = 64
model.backbone.out_channels = 32
model.backbone.bottom_up.net.variant = {variant!r}
optimizer.lr = 1e-3
lr_multiplier.warmup_iters = 6
train.update(max_iter=16, eval_period=0, log_period=1)
train.checkpointer.period = 4
{head}
{more}
"""
SMALL_HEADS = {
    "mask_rcnn": """
model.proposal_generator.head.in_channels = 32
model.proposal_generator.update(batch_size_per_image=32, pre_nms_topk=[50, 200], post_nms_topk=[20, 100])
model.roi_heads.update(num_classes=3, batch_size_per_image=16)
model.roi_heads.box_head.update(input_shape=ShapeSpec(channels=32, height=7, width=7), fc_dims=[48])
model.roi_heads.box_predictor.update(
    input_shape=ShapeSpec(channels=48), test_score_thresh=0.0, test_topk_per_image=100
)
model.roi_heads.mask_head.update(input_shape=ShapeSpec(channels=32, height=14, width=14), conv_dims=[32, 32])
""",
    "retinanet": """
model.backbone.top_block.update(in_channels=64, out_channels=32)
model.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[32])
model.update(num_classes=3, test_score_thresh=0.0, test_topk_candidates=1000, max_detections_per_image=100)
""",
}


def write_lazy(
    path: Path, data_root: Path, head: str = "mask_rcnn", *, schedule: str = "1x", more: str = "", **values: Any
) -> Path:
    """Write a LazyConfig that trains a tiny detector on toy data; `more` is Python code appended to it."""
    base = CONFIGS / f"{head}_svt_small_{schedule}.py"
    fields: dict[str, Any] = {"base": str(base), "data_root": str(data_root), "variant": TINY_SVT}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LAZY.format(**{**fields, "head": SMALL_HEADS[head], "more": more, **values}))
    return path


def read_metrics(work_dir: Path, name: str = "metrics.jsonl") -> dict[int, list[dict[str, float]]]:
    """Return the logged learning rates and losses by iteration, with one record per start of the run.

    A half-written last line is ignored. Runs started with `program.py` log the values of each iteration; others log
    medians over 20 iterations.
    """
    path = work_dir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found: dict[int, list[dict[str, float]]] = {}
    for line in lines:
        if line.endswith("}\n") and "total_loss" in (record := json.loads(line)):
            kept = {name: value for name, value in record.items() if name == "lr" or "loss" in name}
            found.setdefault(record["iteration"], []).append(kept)
    return found


def toy_files(toy_data: Path, split: str) -> dict[str, str]:
    """Return the arguments of `coco_dataset` for the "train" or "val" split."""
    return {
        "data_root": str(toy_data),
        "ann_file": f"annotations/instances_{split}2017.json",
        "image_dir": f"{split}2017",
    }


def augmenting_mapper(**changes: Any) -> DatasetMapper:
    """Build a mapper with all random augmentations of the configs, at sizes for toy images."""
    augmentations = [
        T.RandomFlip(),
        T.RandomApply(T.AugmentationList([T.RandomCrop("absolute_range", (30, 60))]), prob=0.5),
        T.ResizeShortestEdge([48, 56, 64, 72, 80], max_size=128, sample_style="choice"),
    ]
    settings = {"is_train": True, "augmentations": augmentations, "image_format": "RGB", "use_instance_mask": True}
    return DatasetMapper(**{**settings, **changes})


@pytest.fixture(autouse=True)
def clean_detectron2() -> Iterator[None]:
    """Reset detectron2's catalogs and loggers after each test.

    Import this fixture in test files that run detectron2 or read data in this process. Otherwise every run would also
    write to the logs of earlier runs.
    """
    before = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    # These loggers write to stderr, where the tests expect only our one-line error.
    for name in ("torch.fx._symbolic_trace", "torch.multiprocessing.spawn", "torch.utils.cpp_extension"):
        logging.getLogger(name).disabled = True
    yield
    for catalog, content in before:
        catalog.data.clear()
        catalog.data.update(content)
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    setup_logger.cache_clear()


@contextmanager
def twins_log() -> Iterator[list[str]]:
    """Collect the messages of our detectron2 code, whose logger does not propagate to pytest."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("detectron2.twins_dense")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
