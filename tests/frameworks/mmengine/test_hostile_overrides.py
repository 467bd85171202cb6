"""Any value at any key of a config: one line that names the key, or a run that can start."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_fixtures
from detection_fixtures import write_config
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from twins_dense.data.toy import make_toy_coco
from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.options import MonitoringOptions, TrainingOptions

NESTED = "[" * 10_000
DETECTOR = [
    "train_cfg={{}}",
    "model.num_classes={[]:1}",
    "model.num_classes={{}}",
    "model.num_classes=" + NESTED,
    "model.num_classes=" + "-" * 10_000 + "1",
    "model.num_classes=" + "9" * 5000,
    "model.num_classes=0x" + "f" * 5000,
    "model.num_classes=None",
    "model.num_classes=-1",
    "model.num_classes=3.5",
    "model=",
    "model=5",
    "model=None",
    "model={}",
    "model=[]",
    "model.type=",
    "model.type=5",
    "model.type={}",
    "model.backbone=5",
    "model.backbone={}",
    "model.backbone.variant=5",
    "model.backbone.variant=none",
    "model.min_size=None",
    "model.min_size=x",
    "model.max_size={}",
    "model.options=5",
    "default_hooks=None",
    "default_hooks=5",
    "default_hooks={'logger': 5}",
    "default_hooks={'checkpoint': {}}",
    "default_hooks={'checkpoint': {'type': 5}}",
    "default_hooks={5: 5}",
    "train_dataloader=5",
    "train_dataloader={}",
    "train_dataloader=[]",
    "train_dataloader={'dataset': 5}",
    "train_dataloader.dataset=5",
    "train_dataloader.dataset={}",
    "train_dataloader.dataset=None",
    "train_dataloader.dataset.type=5",
    "train_dataloader.dataset.transforms=5",
    "train_dataloader.dataset.transforms=[5]",
    "train_dataloader.dataset.ann_file=5",
    "train_dataloader.dataset.ann_file=\x00",
    "train_dataloader.dataset.image_dir=None",
    "train_dataloader.dataset.indices=x",
    "train_dataloader.batch_size=x",
    "train_dataloader.batch_size=0",
    "train_dataloader.batch_size=None",
    "train_dataloader.sampler=5",
    "train_dataloader.num_workers=-1",
    "val_dataloader=5",
    "val_dataloader={'dataset': []}",
    "val_evaluator=5",
    "val_evaluator=[5]",
    "val_evaluator={}",
    "val_evaluator.type=5",
    "val_cfg=5",
    "optim_wrapper=x",
    "optim_wrapper=[]",
    "optim_wrapper={}",
    "optim_wrapper.optimizer=x",
    "optim_wrapper.optimizer={}",
    "param_scheduler=5",
    "param_scheduler=[5]",
    "train_cfg=5",
    "train_cfg={}",
    "train_cfg=[]",
    "custom_imports=5",
    "custom_imports={}",
    "custom_imports={'imports': 5}",
    "custom_imports={'imports': ['no.such.module']}",
    "default_scope=0",
    "default_scope=[]",
    "model.=1",
    ".model=1",
    "model..num_classes=1",
    "model." + "a" * 100_000 + "=1",
    "model.a\nb=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    data = make_toy_coco(folder / "toy", num_train=2, num_val=1, image_size=64)
    write_config(folder / "detector.py", data)
    with (folder / "detector.py").open("a") as file:
        file.write("default_hooks = dict(logger=dict(type='LoggerHook', interval=1))\n")
    for split in ("training", "validation"):
        for kind, mode in (("images", "RGB"), ("annotations", "L")):
            (folder / "labels" / kind / split).mkdir(parents=True)
            for number in range(2):
                Image.new(mode, (64, 64), 1 if mode == "L" else None).save(
                    folder / "labels" / kind / split / f"{number}.png"
                )
    segmentation_fixtures.write_config(folder / "segmentor.py", folder / "labels")
    return folder


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run when all is prepared."""
    monkeypatch.setattr(Runner, "train", lambda self: self.model)
    warnings.simplefilter("ignore")  # of libraries, about odd values


def start(path: Path, overrides: list[str], work_dir: Path) -> str:
    """Prepare a run like `train` with options, and return the message of the error; "" if it could start."""
    try:
        config = engine.load_config(path, overrides)
        engine.default_work_dir(config)
        engine.set_skip_bad(config)
        engine.set_training(config, TrainingOptions(epochs=2, size=64, batch=2))
        engine.set_monitoring(config, MonitoringOptions(samples=1))
        engine.train(config, work_dir)
    except TwinsError as error:
        message = str(error)
        assert message and "\n" not in message
        return message
    return ""


@pytest.mark.parametrize("override", DETECTOR, ids=lambda override: ascii(override)[:45])
def test_odd_overrides(folder: Path, tmp_path: Path, override: str) -> None:
    message = start(folder / "detector.py", [override], tmp_path / "run")
    if not message:
        pytest.fail("the run could start")
    assert len(message) < 2000
    keys = override.partition("=")[0].split(".")
    assert any(key and key[:60] in message for key in keys) or "override" in message


def settings(node: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every setting of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        if not str(key).startswith("_"):
            yield f"{path}{key}"
            if not isinstance(node, tuple):
                yield from settings(value, f"{path}{key}.")


VALUES = [
    *("", "5", "-1", "0", "1.5", "x", "None", "True", "[]", "[5]", "['x']", "{}", "{'a': 5}", "{5: 5}", "()", "b'x'"),
    *("...", "1j", "{5}", "1e400", "0x" + "f" * 4000, "'a\\nb'", "[[[[]]]]", "{'type': 5}", "{'type': 'X'}"),
    *("[{}]", "[None]", "{'type': []}", "\x00", "nan"),
]


def random_overrides(path: Path, seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    keys = sorted(settings(Config.fromfile(path, import_custom_modules=False).to_dict()))
    for _ in range(count):
        yield f"{rng.choice(keys)}={rng.choice(VALUES)}"


def try_many(path: Path, tmp_path: Path, seed: int, count: int) -> None:
    failed = []
    for number, override in enumerate(random_overrides(path, seed, count)):
        try:
            start(path, [override], tmp_path / str(number))
        except Exception as error:
            failed.append(f"{ascii(override)[:100]}: {type(error).__name__}: {str(error)[:200]}")
    assert failed == [], json.dumps(failed, indent=1)


@pytest.mark.parametrize("name", ["detector.py", "segmentor.py"])
def test_any_value_at_any_key(folder: Path, tmp_path: Path, name: str) -> None:
    try_many(folder / name, tmp_path, seed=0, count=20)


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", ["detector.py", "segmentor.py"])
def test_many_values_at_any_key(folder: Path, tmp_path: Path, name: str, seed: int) -> None:
    try_many(folder / name, tmp_path, seed, count=100)
