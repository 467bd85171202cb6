"""`twins-dense demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import assert_error, twins
from PIL import Image

from twins_dense.inference.demo import demo_config


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself, but for a limit of detections: a model that has learned nothing yet gives the most of all."""

    def with_few_detections(data: Path, epochs: int) -> dict[str, Any]:
        config = demo_config(data, epochs)
        config["model"]["options"]["box_detections_per_img"] = 10
        return config

    monkeypatch.setattr("twins_dense.inference.demo.demo_config", with_few_detections)
    result = twins("demo", "--out", tmp_path / "demo", "--epochs", 1, "--num-train", 8)
    assert result.code == 0, result.err
    out = tmp_path / "demo"
    (data,), (run,) = out.glob("data*"), out.glob("run-*")
    assert len(list(data.glob("train2017/*.jpg"))) == 8 and len(list(data.glob("val2017/*.jpg"))) == 60
    assert (run / "epoch_1.pth").is_file()
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    pictures = sorted(out.glob("*.png"))
    assert [picture.name.split("-")[0] for picture in pictures] == ["curves", "predictions"]
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
            assert min(image.size) > 200
        assert str(picture) in result.out
    for kind in ("bbox", "segm"):
        assert f"AP50 {metrics[f'coco/{kind}_AP50']:.3f}" in result.out
    assert str(run) in result.out and str(data) in result.out
    assert "Learning curves" in (run / "report.html").read_text(encoding="utf-8")
    assert str(run / "report.html") in result.out


def test_demo_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    assert_error(twins("demo", "--out", tmp_path / "demo"), str(tmp_path / "demo"), "is a file")
    assert (tmp_path / "demo").read_text() == "mine"
