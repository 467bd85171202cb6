"""`twins-dense eval`: scores, where they are written, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fixtures import assert_error, twins
from detection_fixtures import NUM_VAL, Run
from PIL import Image
from pycocotools.coco import COCO

from twins_dense.evaluation.record import About, RecordWriter, read_record
from twins_dense.evaluation.result_files import write_detections, write_label_maps


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


class TestResume:
    @staticmethod
    def stop(run: Path, after: int, *options: object) -> Any:
        """Evaluate a run, press Ctrl-C after a number of images, and return the result."""
        add, count = RecordWriter.add, iter(range(after))

        def add_or_stop(writer: RecordWriter, entry: Any) -> None:
            if next(count, None) is None:
                raise KeyboardInterrupt
            add(writer, entry)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RecordWriter, "add", add_or_stop)
            return twins("eval", run, *options)

    @pytest.fixture
    def run(self, tiny_run: Run, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_run.work_dir, tmp_path / "run"))

    def test_ctrl_c_and_resume(self, run: Path, tmp_path: Path) -> None:
        result = self.stop(run, 3)
        (folder,) = (tmp_path / "run_eval").iterdir()
        assert result.code == 130
        (line,) = result.err.splitlines()
        assert line.startswith(f"stopped: 3 of {NUM_VAL} images are finished in ") and "--resume" in line
        assert not (folder / "metrics.json").exists()
        result = twins("eval", run, "--resume", "--detections")
        assert result.code == 0, result.err
        assert f"3 of {NUM_VAL} images are finished" in result.out
        assert [path.name for path in (tmp_path / "run_eval").iterdir()] == [folder.name]
        record = read_record(folder)
        assert record.is_complete and (folder / "metrics.json").is_file()
        found = json.loads((folder / "detections.json").read_text())
        assert found == [detection for entry in record.entries for detection in entry["detections"]]

    def test_a_chosen_folder(self, run: Path, tmp_path: Path) -> None:
        assert self.stop(run, 1, "--work-dir", tmp_path / "out").code == 130
        assert_error(twins("eval", run, "--resume"), "run_eval", "no interrupted evaluation")
        assert twins("eval", run, "--work-dir", tmp_path / "out", "--resume").code == 0
        result = twins("eval", run, "--work-dir", tmp_path / "out", "--resume")
        assert_error(result, str(tmp_path / "out"), "no interrupted evaluation")

    def test_another_checkpoint(self, run: Path, tmp_path: Path) -> None:
        assert self.stop(run / "epoch_2.pth", 1).code == 130
        assert_error(twins("eval", run / "epoch_1.pth", "--resume"), "epoch_1.pth", "no interrupted evaluation")
        (folder,) = (tmp_path / "run_eval").iterdir()
        assert_error(twins("eval", run / "epoch_1.pth", "--work-dir", folder), "another checkpoint")


class TestDamagedRecord:
    def test_is_one_line(self, tiny_run: Run, tmp_path: Path) -> None:
        evaluate = ("eval", tiny_run.work_dir, "--work-dir", tmp_path)
        assert twins(*evaluate).code == 0
        path = tmp_path / "record" / "images-0.jsonl"
        content = path.read_text().replace('"detections"', '"found"')
        for damaged in (content, content[: len(content) // 2]):  # finished, and to be resumed
            path.write_text(damaged)
            assert_error(twins(*evaluate), "broken (detections is missing)", str(path.parent), "evaluate again")


class TestResultFiles:
    def test_label_maps_are_for_segmentors(self, tiny_run: Run, tmp_path: Path) -> None:
        result = twins("eval", tiny_run.work_dir, "--label-maps", "--work-dir", tmp_path / "out")
        assert_error(result, "--label-maps", "detection")
        assert not (tmp_path / "out").exists()

    def test_pycocotools_reads_detections(self, tmp_path: Path) -> None:
        detections = [
            {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": score} for score in (0.5, 0.25)
        ]
        with RecordWriter(tmp_path, About("detection", ["a"], 2, "", "", "")) as writer:
            for index in range(2):
                writer.add({"index": index, "detections": [detections[index]]})
        path = write_detections(read_record(tmp_path), tmp_path)
        truth = COCO()
        truth.dataset = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 3}]}
        truth.createIndex()
        loaded = truth.loadRes(str(path))
        assert [loaded.anns[i]["score"] for i in (1, 2)] == [0.5, 0.25]

    @pytest.mark.parametrize("first_value", [0, 1])
    def test_label_maps(self, tmp_path: Path, first_value: int) -> None:
        settings = {"first_value": first_value, "palette": [[0, 0, 0]] * 300, "ignore_index": 255}
        about = About("segmentation", [str(i) for i in range(300)], 2, "", "", "", settings)
        maps = [np.array([[0, 7, 299]], np.uint16), np.array([[1], [253]], np.uint8)]
        with RecordWriter(tmp_path, about) as writer:
            for index, (folder, values) in enumerate(zip("ab", maps, strict=True)):
                name = writer.write_map(f"{index}.png", values)
                writer.add({"index": index, "labels": f"/data/labels/{folder}/x.png", "prediction": name})
        out = write_label_maps(read_record(tmp_path), tmp_path)
        for folder, values in zip("ab", maps, strict=True):
            with Image.open(out / folder / "x.png") as opened:
                assert (np.asarray(opened) == values + first_value).all()
