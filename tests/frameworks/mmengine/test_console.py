"""The console of MMEngine runs shows little, and the log file has everything."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detection_fixtures import Run, write_config
from run_fixtures import config_of
from segmentation_fixtures import write_config as write_segmentation_config

from twins_dense.frameworks import console
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.options import MonitoringOptions

NUMBERS = r"( +(\d\.\d{3}|–))"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.setattr(console.logger, "handlers", [])
    monkeypatch.setattr(console.logger, "propagate", True)
    level = console.logger.level
    stream = io.StringIO()
    console.show_on(stream)
    yield stream
    console.logger.setLevel(level)


def shown_on(stream: io.StringIO) -> list[str]:
    """Return the lines, without progress lines that only a slow machine shows."""
    lines = stream.getvalue().splitlines()
    return [line for line in lines if not re.match(r"(epoch|iter|evaluation  batch) .*ETA", line)]


def assert_lines(lines: list[str], patterns: list[str]) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_detection(toy_data: Path, tmp_path: Path, stream: io.StringIO) -> None:
    config = engine.load_config(write_config(tmp_path / "tiny.py", toy_data))
    engine.set_monitoring(config, MonitoringOptions(samples=0, val_loss=True))
    runner = engine.train(config, tmp_path / "run")
    (log,) = (tmp_path / "run").glob("*/*.log")
    best = r".*best_coco_segm_AP_epoch_1\.pth with coco/segm_AP \d\.\d{3}"
    assert_lines(
        shown_on(stream),
        [
            "training on 8 images: 1 epoch of 4 iterations, batch size 2",
            re.escape(f"log file: {log}"),
            r"epoch 1/1  iter 4/4  loss \d+\.\d+  lr 7.55e-05  \S+ (it/s|s/it)",
            r"evaluation after epoch 1: 5 images in \d+ s",
            " +AP +AP50 +AP75 +small +medium +large +AR",
            f"box {NUMBERS}{{7}}",
            f"mask{NUMBERS}{{7}}",
            r"val/loss \d+\.\d+",
            f"best so far: {best}",
            f"best checkpoint: {best}",
        ],
    )
    text = log.read_text()
    for part in (
        "System environment:",
        "Config:",
        "Hooks will be executed",
        "Epoch(train) [1][1/4]",
        "coco/bbox_AR100:",
        "coco/segm_AP-circle",
        "val/loss_mask",
    ):
        assert part in text, part
    assert runner.logger.handlers


def test_segmentation(label_data: Path, tmp_path: Path, stream: io.StringIO) -> None:
    engine.train(engine.load_config(write_segmentation_config(tmp_path / "tiny.py", label_data)), tmp_path / "run")
    (log,) = (tmp_path / "run").glob("*/*.log")
    evaluation = [
        r"evaluation after iteration \d: 5 images in \d+ s",
        " mIoU   mAcc   aAcc",
        r"\d\.\d{3}(  \d\.\d{3}){2}",
    ]
    assert_lines(
        shown_on(stream),
        [
            "training on 8 images: 8 iterations, batch size 2",
            re.escape(f"log file: {log}"),
            *evaluation,
            r"iter 8/8  loss \d+\.\d+  lr \S+  \S+ (it/s|s/it)",
            *evaluation,
        ],
    )
    assert "per class results" in log.read_text()


def test_evaluation(tiny_run: Run, tmp_path: Path, stream: io.StringIO) -> None:
    engine.evaluate(config_of(tiny_run), tiny_run.checkpoint, tmp_path / "evaluation")
    assert_lines(shown_on(stream), [r"evaluation: 5 images in \d+ s"])


def test_warnings_are_shown(tiny_run: Run, tmp_path: Path, stream: io.StringIO) -> None:
    config = config_of(tiny_run, ["optim_wrapper.type=AmpOptimWrapper", "train_cfg.max_epochs=1"])
    engine.train(config, tmp_path / "run")
    assert shown_on(stream)[0] == "warning: No GPU: training in float32 instead of mixed precision"
