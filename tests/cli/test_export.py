"""`twins-dense export` writes trained detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_fixtures import assert_error, twins
from detection_fixtures import Run

import twins_dense as td
from twins_dense.deploy.runtimes import open_exported

pytest.importorskip("onnxruntime", reason="installed with the extra export")
pytest.importorskip("onnxscript", reason="installed with the extra export")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_a_trained_detector(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    result = twins("export", tiny_run.work_dir, out)
    assert result.code == 0, result.err
    assert "boxes" in result.out and "scores" in result.out
    about = open_exported(out).about
    assert about["kind"] == "detector" and len(about["weights_sha256"]) == 64
    assert about["classes"] == list(td.load_model(tiny_run.work_dir).classes)
    thresholds = about["thresholds"]
    assert thresholds is None or len(thresholds) == len(about["classes"])
    assert_error(twins("export", tiny_run.work_dir, out), "exists: name a new file")
