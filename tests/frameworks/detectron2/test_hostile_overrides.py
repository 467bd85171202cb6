"""Any value at any key of a LazyConfig or a YAML file: one line that names the key, or a run that can start."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from d2_fixtures import CONFIGS, MARKS, clean_detectron2, engine, toy_files, write_lazy  # noqa: F401  (a fixture)
from detectron2.engine import SimpleTrainer
from omegaconf import OmegaConf

from twins_dense.errors import TwinsError
from twins_dense.frameworks.detectron2.cfg_node import read_dump
from twins_dense.frameworks.options import MonitoringOptions, TrainingOptions

pytestmark = MARKS

LAZY = [
    "model=",
    "model=5",
    "model=null",
    "model=[]",
    "model._target_=5",
    "model._target_=no.such.thing",
    "model.backbone=5",
    "model.backbone.bottom_up.net.variant=5",
    "model.backbone.bottom_up.net.variant=none",
    "model.backbone.out_channels=x",
    "model.backbone.out_channels=-1",
    "model.roi_heads=5",
    "model.roi_heads.num_classes={}",
    "model.roi_heads.num_classes=-1",
    "model.roi_heads.num_classes=" + "9" * 5000,
    "model.roi_heads.num_classes=" + "[" * 1000,
    "model.proposal_generator.pre_nms_topk=5",
    "model.proposal_generator.post_nms_topk=[]",
    "model.pixel_mean=5",
    "optimizer=5",
    "optimizer=null",
    "optimizer.lr=x",
    "optimizer.lr=-1",
    "optimizer.params=5",
    "optimizer.weight_decay=x",
    "lr_multiplier=5",
    "lr_multiplier.max_iter=x",
    "lr_multiplier.milestones=5",
    "lr_multiplier.warmup_iters=x",
    "dataloader=5",
    "dataloader.train=5",
    "dataloader.train.dataset=5",
    "dataloader.train.dataset=[]",
    "dataloader.train.dataset.ann_file=5",
    "dataloader.train.dataset.name=5",
    "dataloader.train.dataset.indices=x",
    "dataloader.train.mapper=5",
    "dataloader.train.mapper.augmentations=5",
    "dataloader.train.mapper.augmentations=[5]",
    "dataloader.train.total_batch_size=x",
    "dataloader.train.total_batch_size=0",
    "dataloader.train.num_workers=-1",
    "dataloader.test=null",
    "dataloader.evaluator=5",
    "train=5",
    "train=null",
    "train.max_iter=x",
    "train.max_iter=0",
    "train.seed=x",
    "train.amp=5",
    "train.amp.dtype=5",
    "train.checkpointer=5",
    "train.checkpointer.period=x",
    "train.eval_period=x",
    "train.log_period=0",
    "train.device=x",
    "train.device=5",
    "train.ddp=5",
    "train.init_checkpoint=5",
    "train.monitoring=5",
    "train.monitoring.samples=x",
    "train.auto_scale_lr=5",
    "train.clip_norm=x",
    "train.a\nb=1",
    "train.=1",
    ".train=1",
    "train..seed=1",
    "train." + "a" * 100_000 + "=1",
]
YAML = [
    "MODEL=5",
    "MODEL={}",
    "MODEL.=5",
    "MODEL.DEVICE=x",
    "MODEL.META_ARCHITECTURE=x",
    "MODEL.BACKBONE.NAME=x",
    "MODEL.TWINS.VARIANT=x",
    "MODEL.TWINS.WEIGHTS=5",
    "MODEL.TWINS.WEIGHTS=no.pth",
    "MODEL.ROI_HEADS.NUM_CLASSES=x",
    "MODEL.ROI_HEADS.NUM_CLASSES=-1",
    "MODEL.ROI_HEADS.NUM_CLASSES={[]:1}",
    "MODEL.ROI_HEADS.NUM_CLASSES=" + "[" * 10_000,
    "MODEL.ROI_HEADS.NUM_CLASSES=" + "9" * 5000,
    "MODEL.ANCHOR_GENERATOR.SIZES=[]",
    "MODEL.ANCHOR_GENERATOR.SIZES=['x']",
    "MODEL.PIXEL_MEAN=[]",
    "MODEL.PIXEL_MEAN=['a','b','c']",
    "MODEL.FPN.IN_FEATURES=['x']",
    "MODEL.WEIGHTS=5",
    "SOLVER.BASE_LR=x",
    "SOLVER.MAX_ITER=x",
    "SOLVER.MAX_ITER=0",
    "SOLVER.STEPS=5",
    "SOLVER.STEPS=('x',)",
    "SOLVER.IMS_PER_BATCH=0",
    "SOLVER.IMS_PER_BATCH=x",
    "SOLVER.CHECKPOINT_PERIOD=0",
    "SOLVER.WARMUP_ITERS=x",
    "SOLVER.NO_DECAY=5",
    "INPUT.MIN_SIZE_TRAIN=('x',)",
    "INPUT.MIN_SIZE_TEST=-5",
    "INPUT.MASK_FORMAT=x",
    "DATASETS.TRAIN=5",
    "DATASETS.TRAIN=()",
    "DATASETS.TRAIN=(5,)",
    "DATALOADER.NUM_WORKERS=-1",
    "SEED=x",
    "OUTPUT_DIR=5",
    "VERSION=x",
    "MODEL.A\nB=1",
    "MODEL." + "A" * 100_000 + "=1",
    "=1",
    "x",
]
YAML_TINY = """\
_BASE_: {base}
MODEL:
  DEVICE: cpu
  FPN: {{OUT_CHANNELS: 32}}
  ROI_HEADS: {{NUM_CLASSES: 3}}
  ROI_BOX_HEAD: {{FC_DIM: 48}}
  ROI_MASK_HEAD: {{CONV_DIM: 32}}
"""
VALUES = [
    *("", "5", "-1", "0", "1.5", "x", "null", "true", "[]", "[5]", "[x]", "{}", "{a:5}", "{5:5}", "1e400", "nan"),
    *("'a b'", "[[[[]]]]", "{_target_:5}", "{_target_:x}", "[{}]", "[null]", "'${x}'", "'${train.seed}'", "'???'"),
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configs")
    base = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
    (folder / "tiny.yaml").write_text(YAML_TINY.format(base=base))
    return {"lazy": write_lazy(folder / "tiny.py", toy_data), "yaml": folder / "tiny.yaml"}


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End a run when all is prepared."""
    monkeypatch.setattr(SimpleTrainer, "train", lambda *_: None)
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about odd values
        yield
    logging.disable(logging.NOTSET)


def start(path: Path, toy_data: Path, override: str, work_dir: Path) -> str:
    """Prepare a run like `train` with options, and return the message of the error; "" if it could start."""
    try:
        config = engine.load_config(path, [override])
        engine.default_work_dir(config)
        if path.suffix == ".yaml":
            for split, name in (("train", "train"), ("test", "val")):
                config.dataloader[split].dataset.update(toy_files(toy_data, name))
        engine.set_skip_bad(config)
        engine.set_training(config, TrainingOptions(epochs=2, size=64, batch=2))
        engine.set_monitoring(config, MonitoringOptions())
        engine.train(config, work_dir)
    except TwinsError as error:
        message = str(error)
        assert message and "\n" not in message
        return message
    return ""


@pytest.mark.parametrize(
    ("kind", "override"),
    [*(("lazy", override) for override in LAZY), *(("yaml", override) for override in YAML)],
    ids=lambda value: ascii(value)[:45],
)
def test_odd_overrides(configs: dict[str, Path], toy_data: Path, tmp_path: Path, kind: str, override: str) -> None:
    message = start(configs[kind], toy_data, override, tmp_path / "run")
    if not message:
        pytest.fail("the run could start")
    assert len(message) < 2000
    # Settings of a YAML file may be named as in the LazyConfig that it becomes.
    keys = override.partition("=")[0].lower().split(".")
    assert any(key and key[:60] in message.lower() for key in keys) or "override" in message or "choose" in message


def settings(node: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every setting of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if not str(key).startswith("_"):
            yield f"{path}{key}"
            yield from settings(value, f"{path}{key}.")


def try_many(path: Path, toy_data: Path, work_dir: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    config = engine.load_config(path)
    if path.suffix == ".py":
        keys = sorted(settings(OmegaConf.to_container(config, resolve=False)))
    else:
        keys = sorted(settings(read_dump(config.model.cfg)))
    failed = []
    for number in range(count):
        override = f"{rng.choice(keys)}={rng.choice(VALUES)}"
        try:
            start(path, toy_data, override, work_dir / str(number))
        except Exception as error:
            failed.append(f"{ascii(override)[:100]}: {type(error).__name__}: {str(error)[:200]}")
    assert failed == [], "\n".join(failed)


@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_any_value_at_any_key(configs: dict[str, Path], toy_data: Path, tmp_path: Path, kind: str) -> None:
    try_many(configs[kind], toy_data, tmp_path, seed=0, count=20)


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_many_values_at_any_key(configs: dict[str, Path], toy_data: Path, tmp_path: Path, kind: str, seed: int) -> None:
    try_many(configs[kind], toy_data, tmp_path, seed, count=100)
