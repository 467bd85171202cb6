"""Tests on a CUDA device: results equal to the CPU's, mixed precision, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_fixtures
import torch
from cli_fixtures import twins
from contracts import SLIM_PCPVT, SLIM_SVT, random_backbone, randomise
from detection_fixtures import write_config
from PIL import Image

import twins_dense as td

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")


@pytest.mark.parametrize(
    ("spec", "window_padding"),
    [(SLIM_PCPVT, "zeros"), (SLIM_SVT, "zeros"), (SLIM_SVT, "mask"), (SLIM_SVT, "upstream_mask")],
    ids=lambda value: getattr(value, "name", value),
)
class TestBackbone:
    def test_the_numbers_of_the_cpu(self, spec: td.TwinsSpec, window_padding: Any) -> None:
        net = random_backbone(spec, window_padding=window_padding)
        images = torch.randn(2, 3, 160, 224)
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = net(images)
            found = net.to(DEVICE)(images.to(DEVICE))
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.cpu() - theirs).abs().max() <= 1e-4 * theirs.abs().max()

    def test_gradients_in_bfloat16(self, spec: td.TwinsSpec, window_padding: Any) -> None:
        net = random_backbone(spec, window_padding=window_padding, drop_path_rate=0.1).train().to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            levels = net(torch.randn(2, 3, 160, 224, device=DEVICE))
        sum(level.float().square().mean() for level in levels).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def run(verb: str, *arguments: object) -> str:
    result = twins(verb, *arguments)
    assert result.code == 0, result.err
    return result.out


@pytest.mark.parametrize("amp", [(), ("--amp",)], ids=["float32", "bfloat16"])
class TestCommands:
    def test_detectors(self, amp: tuple[str, ...], toy_data: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "tiny.py", toy_data)
        self._train_and_use(config, "epoch_1.pth", next((toy_data / "val2017").iterdir()), tmp_path, amp)

    def test_segmentors(self, amp: tuple[str, ...], label_data: Path, tmp_path: Path) -> None:
        config = segmentation_fixtures.write_config(tmp_path / "tiny.py", label_data, iterations=3)
        photo = next((label_data / "images" / "validation").iterdir())
        self._train_and_use(config, "iter_3.pth", photo, tmp_path, amp)

    @staticmethod
    def _train_and_use(config: Path, name: str, photo: Path, folder: Path, amp: tuple[str, ...]) -> None:
        run("train", config, "--work-dir", folder / "run", *amp)
        checkpoint = folder / "run" / name
        run("eval", config, checkpoint, "--work-dir", folder / "eval")
        trained = json.loads((folder / "run" / "metrics.json").read_text())["metrics"]
        assert json.loads((folder / "eval" / "metrics.json").read_text())["metrics"] == pytest.approx(trained, abs=1e-2)
        run("predict", config, checkpoint, photo, "--out", folder / "drawn", "--score", 0)
        assert len(json.loads((folder / "drawn" / "predictions.json").read_text())) == 1


def test_features(tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3.1", reason="Zarr v3 needs Python 3.11")
    torch.save(randomise(td.create_classifier("pcpvt_small"), 1).state_dict(), tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (150, 200, 3), np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    for device in (DEVICE.type, "cpu"):
        model = ("--variant", "pcpvt_small", "--weights", tmp_path / "w.pth", "--device", device)
        run("extract", tmp_path / "photos", *model, "--out", tmp_path / device, "--size", 128, "--chunk", 2)
    found, expected = (td.open_features(tmp_path / device) for device in (DEVICE.type, "cpu"))
    for row in range(5):
        for level in found.levels:
            difference = np.abs(found.map(row, level) - expected.map(row, level)).max()
            assert difference <= 1e-4 * np.abs(expected.map(row, level)).max()
