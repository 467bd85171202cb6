"""`twins-dense eval`: scores, where they are written, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_fixtures import assert_error, twins
from detection_fixtures import Run


def named(run: Run, name: str, tmp_path: Path) -> Path:
    """The config of the tiny run under another name."""
    return shutil.copy(run.config, tmp_path / f"{name}.py")


class TestEval:
    def test_writes_metrics(self, tiny_run: Run, tmp_path: Path) -> None:
        config = named(tiny_run, "eval_metrics", tmp_path)
        result = twins("eval", config, tiny_run.checkpoint, "--work-dir", tmp_path / "out")
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
        expected = json.loads((tiny_run.work_dir / "metrics.json").read_text())["metrics"]
        assert found == pytest.approx(expected, abs=1e-6)
        for title, kind in (("box", "bbox"), ("mask", "segm")):
            (row,) = re.findall(rf"^{title} .*$", result.out, re.MULTILINE)
            values = [found[f"coco/{kind}_{name}"] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")]
            assert row.split()[1:] == [f"{value:.3f}" if value >= 0 else "–" for value in values]
        assert result.out.splitlines()[-1].startswith(str(tmp_path / "out" / "metrics.json"))

    def test_default_folder_and_pycocotools(
        self, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = named(tiny_run, "eval_default", tmp_path)
        config.write_text(config.read_text() + "\ntest_evaluator.update(backend='hotcoco')\n")
        (tmp_path / "run").mkdir()
        checkpoint = shutil.copy(tiny_run.checkpoint, tmp_path / "run")
        result = twins("eval", config, checkpoint, "test_evaluator.backend=pycocotools")
        assert result.code == 0, result.err
        (path,) = tmp_path.glob("run_eval/*/metrics.json")  # beside the run
        expected = json.loads((tiny_run.work_dir / "metrics.json").read_text())["metrics"]
        assert json.loads(path.read_text())["metrics"] == pytest.approx(expected, abs=1e-6)

    def test_a_missing_checkpoint(self, tiny_run: Run, tmp_path: Path) -> None:
        config = named(tiny_run, "eval_missing", tmp_path)
        result = twins("eval", config, "no/epoch_9.pth", "--work-dir", tmp_path / "out")
        assert_error(result, "no/epoch_9.pth", "no such file")
        assert not (tmp_path / "out" / "metrics.json").exists()
