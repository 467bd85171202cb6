"""Evaluations with detectron2 are recorded image by image, and an interrupted one is resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, snapshot, twins
from d2_fixtures import CONFIGS, HEADS, MARKS, clean_detectron2, engine, twins_log, write_lazy  # noqa: F401  (a fixture)
from d2_run_fixtures import folder_with_programs
from detection_fixtures import NUM_VAL, child_environment
from detectron2.config import instantiate

from twins_dense.errors import TwinsError
from twins_dense.evaluation.coco import evaluate_coco
from twins_dense.evaluation.record import Record, read_record
from twins_dense.frameworks.detectron2 import evaluation, recording
from twins_dense.frameworks.detectron2.detection_evaluator import DetectionEvaluator

pytestmark = MARKS


@dataclass(frozen=True)
class Case:
    """A config, a checkpoint with random weights, and a folder with its evaluation. Tests must not change them."""

    head: str
    config: Path
    checkpoint: Path
    whole: Path

    def evaluate(self, work_dir: Path, *overrides: str) -> dict[str, float]:
        return engine.evaluate(engine.load_config(self.config, overrides), self.checkpoint, work_dir)


@pytest.fixture(scope="module", params=HEADS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Case:
    root = folder_with_programs(tmp_path_factory.mktemp(request.param))
    shutil.copytree(toy_data, root / "toy")
    annotations = root / "toy" / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    content["annotations"][1]["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    config = write_lazy(root / "tiny.py", root / "toy", request.param)
    torch.manual_seed(0)
    model = instantiate(engine.load_config(config).model)
    torch.save({"model": model.state_dict(), "iteration": 6}, root / "random.pth")
    made = Case(request.param, config, root / "random.pth", root / "whole")
    made.evaluate(made.whole)
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the ids of the images that are evaluated in this process."""
    ids: list[int] = []
    process = DetectionEvaluator.process

    def counting(self: DetectionEvaluator, inputs: Any, outputs: Any) -> None:
        ids.extend(entry["image_id"] for entry in inputs)
        process(self, inputs, outputs)

    monkeypatch.setattr(DetectionEvaluator, "process", counting)
    return ids


def assert_same_evaluation(found: Path, expected: Path) -> None:
    assert (found / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    ours, theirs = read_record(found), read_record(expected)
    assert ours.is_complete and ours.entries == theirs.entries
    assert ours.about.identity == theirs.about.identity


def metrics_of(record: Record) -> dict[str, float]:
    """Compute the metrics from a record alone, with the names of `metrics.json`."""
    settings = record.about.settings
    categories = zip(settings["category_ids"], record.about.classes, strict=True)
    truth = {
        "images": [entry["image"] for entry in record.entries],
        "annotations": [annotation for entry in record.entries for annotation in entry["annotations"]],
        "categories": [{"id": category, "name": name} for category, name in categories],
    }
    detections = [detection for entry in record.entries for detection in entry["detections"]]
    kinds, max_dets = settings["iou_types"], settings["max_dets"]
    found = evaluate_coco(truth, detections, iou_types=kinds, max_dets=max_dets, backend="pycocotools")
    return {f"coco/{name}": value for name, value in found.items()}


class TestRecord:
    def test_about(self, case: Case) -> None:
        about = read_record(case.whole).about
        assert (about.task, about.engine, about.num_images) == ("detection", "detectron2", NUM_VAL)
        assert about.checkpoint == str(case.checkpoint) and about.dataset == "toy_test"
        assert list(about.classes) == ["circle", "rectangle", "triangle"] and about.settings["max_dets"] == 100
        assert about.settings["iou_types"] == (["bbox", "segm"] if case.head == "mask_rcnn" else ["bbox"])
        assert about.versions.keys() >= {"torch", "detectron2"} and about.device and about.command and about.started
        assert engine.from_data(about.config).dataloader.test.dataset.name == "toy_test"

    def test_entries(self, case: Case) -> None:
        record = read_record(case.whole)
        annotations = case.config.parent / "toy" / "annotations" / "instances_val2017.json"
        content = json.loads(annotations.read_text())
        images = sorted(content["images"], key=lambda image: image["id"])
        assert [entry["index"] for entry in record.entries] == list(range(NUM_VAL))
        for entry, image in zip(record.entries, images, strict=True):
            assert set(entry) == {"index", "file", "image", "annotations", "detections"}
            assert entry["image"] == {key: image[key] for key in ("id", "height", "width")}
            assert Path(entry["file"]).is_absolute() and Path(entry["file"]).name == image["file_name"]
            assert Path(entry["file"]).is_file()
            truth = [annotation for annotation in content["annotations"] if annotation["image_id"] == image["id"]]
            assert entry["annotations"] == truth
            assert entry["detections"] and all(found["image_id"] == image["id"] for found in entry["detections"])
            assert {found["category_id"] for found in entry["detections"]} <= set(record.about.settings["category_ids"])
            assert all(("segmentation" in found) == (case.head == "mask_rcnn") for found in entry["detections"])
        assert any(annotation.get("iscrowd") for entry in record.entries for annotation in entry["annotations"])

    def test_metrics_follow_from_it(self, case: Case) -> None:
        stored = json.loads((case.whole / "metrics.json").read_text())["metrics"]
        expected = metrics_of(read_record(case.whole))
        assert len(stored) == (6 + 3) * (2 if case.head == "mask_rcnn" else 1)
        for name, value in stored.items():
            assert value == (None if expected[name] < 0 else pytest.approx(expected[name], rel=0, abs=1e-12)), name

    @pytest.mark.parametrize("case", ["retinanet"], indirect=True)
    def test_training_writes_none(self, case: Case, tmp_path: Path) -> None:
        options = ("train.max_iter=2", "train.eval_period=1")
        assert twins("train", case.config, "--work-dir", tmp_path / "run", *options).code == 0
        assert not (tmp_path / "run" / "record").exists()


class TestResume:
    @pytest.mark.parametrize("num_finished", [1, 4])
    def test_a_failure(
        self, case: Case, tmp_path: Path, num_finished: int, counted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = DetectionEvaluator.process

        def failing(self: DetectionEvaluator, inputs: Any, outputs: Any) -> None:
            if len(counted) == num_finished:
                raise RuntimeError("out of memory")
            process(self, inputs, outputs)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(DetectionEvaluator, "process", failing)
            case.evaluate(tmp_path / "eval")
        assert len(read_record(tmp_path / "eval").entries) == num_finished
        assert not (tmp_path / "eval" / "metrics.json").exists()
        counted.clear()
        with twins_log() as lines:
            case.evaluate(tmp_path / "eval", "dataloader.test.num_workers=1")
        assert f"resuming: {num_finished} of {NUM_VAL} images are finished" in lines
        assert counted == [entry["image"]["id"] for entry in read_record(case.whole).entries][num_finished:]
        assert_same_evaluation(tmp_path / "eval", case.whole)

    @pytest.mark.parametrize("case", ["mask_rcnn"], indirect=True)
    @pytest.mark.parametrize("num_processes", [1, 2])
    def test_a_kill(self, case: Case, tmp_path: Path, num_processes: int) -> None:
        """With two processes, the first that reaches its second image kills itself, and the other one is ended."""
        command = ["eval", case.config, case.checkpoint, "--work-dir", tmp_path / "eval"]
        killed = subprocess.run(
            [sys.executable, "program.py", *map(str, command), "--num-gpus", str(num_processes)],
            cwd=case.config.parent,
            env={**child_environment(), "KILL_IN": "process", "KILL_AT_CALL": "3" if num_processes == 1 else "2"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert killed.returncode == (-signal.SIGKILL if num_processes == 1 else 1), killed.stderr
        files = sorted((tmp_path / "eval" / "record").glob("images-*.jsonl"))
        assert [path.name for path in files] == [f"images-{rank}.jsonl" for rank in range(num_processes)]
        with files[-1].open("ab") as file:  # a line that a kill has cut
            file.write(b'{"index":4,"fi')
        num_finished = len(read_record(tmp_path / "eval").entries)
        assert 0 < num_finished < NUM_VAL
        result = twins(*command, "--resume", "--detections")
        assert result.code == 0, result.err
        assert f"resuming: {num_finished} of {NUM_VAL} images are finished" in result.out
        assert_same_evaluation(tmp_path / "eval", case.whole)
        found = json.loads((tmp_path / "eval" / "detections.json").read_text())
        assert found == [one for entry in read_record(case.whole).entries for one in entry["detections"]]

    @pytest.mark.parametrize("case", ["retinanet"], indirect=True)
    def test_an_interruption(self, case: Case, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """`eval --resume` finds the folder beside the checkpoint."""
        process = DetectionEvaluator.process

        def interrupted(self: DetectionEvaluator, inputs: Any, outputs: Any) -> None:
            if len(counted) == 2:
                raise KeyboardInterrupt
            process(self, inputs, outputs)

        with monkeypatch.context() as patch:
            patch.setattr(DetectionEvaluator, "process", interrupted)
            result = twins("eval", case.config, case.checkpoint)
        assert result.code == 130
        assert result.err.startswith(f"stopped: 2 of {NUM_VAL} images are finished in ") and "--resume" in result.err
        result = twins("eval", case.config, case.checkpoint, "--resume")
        assert result.code == 0, result.err
        (folder,) = case.config.parent.with_name(f"{case.config.parent.name}_eval").iterdir()
        assert len(counted) == NUM_VAL
        assert_same_evaluation(folder, case.whole)

    def test_a_finished_one(self, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only the metrics are computed again; neither the data set nor the model is loaded."""
        folder = tmp_path / "eval"
        shutil.copytree(case.whole, folder)
        (folder / "metrics.json").unlink()
        before = snapshot(folder / "record")
        monkeypatch.setattr(evaluation, "instantiate", None)
        monkeypatch.setattr(evaluation, "load_model", None)
        metrics = case.evaluate(folder)
        assert snapshot(folder / "record") == before
        assert_same_evaluation(folder, case.whole)
        assert metrics["coco/bbox_AP"] == json.loads((folder / "metrics.json").read_text())["metrics"]["coco/bbox_AP"]

    @pytest.mark.parametrize("is_finished", [True, False])
    @pytest.mark.parametrize("what", ["checkpoint", "config"])
    def test_another_evaluation(self, case: Case, tmp_path: Path, what: str, is_finished: bool) -> None:
        folder, checkpoint, overrides = tmp_path / "eval", case.checkpoint, []
        shutil.copytree(case.whole, folder)
        if not is_finished:
            path = folder / "record" / "images-0.jsonl"
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
        if what == "config":
            overrides = ["dataloader.test.mapper.augmentations.0.short_edge_length=80"]
        else:
            content = torch.load(checkpoint, weights_only=True)
            torch.save({**content, "iteration": 7}, checkpoint := tmp_path / "other.pth")
        before = snapshot(folder / "record"), (folder / "metrics.json").read_bytes()
        result = twins("eval", case.config, checkpoint, "--work-dir", folder, *overrides)
        assert_error(result, repr(str(folder)), "another checkpoint, config or data set", "--work-dir")
        assert (snapshot(folder / "record"), (folder / "metrics.json").read_bytes()) == before


@pytest.mark.parametrize("case", ["retinanet"], indirect=True)
class TestIdentity:
    SAME = (
        "train.output_dir=elsewhere",
        "train.device=cuda:1",
        "dataloader.test.num_workers=3",
        "train.max_iter=7",
        "optimizer.lr=0.5",
    )
    OTHER = (
        "dataloader.test.dataset.indices=2",
        "dataloader.evaluator.max_dets_per_image=50",
        "model.pixel_std=[1,1,1]",
    )

    @pytest.mark.parametrize("override", [*SAME, *OTHER])
    def test_settings(self, case: Case, override: str) -> None:
        identities = [
            recording.evaluation_identity(engine.load_config(case.config, overrides), case.checkpoint)
            for overrides in ([], [override])
        ]
        assert (identities[0] == identities[1]) == (override in self.SAME)

    @pytest.mark.parametrize("override", ["OUTPUT_DIR=a", "DATALOADER.NUM_WORKERS=1", "MODEL.DEVICE=cpu", "SEED=3"])
    def test_of_a_yaml_file(self, case: Case, override: str) -> None:
        path = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
        found = {
            recording.evaluation_identity(engine.load_config(path, overrides), case.checkpoint)
            for overrides in ([], [override])
        }
        other = engine.load_config(path, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.3"])
        assert len(found) == 1 and recording.evaluation_identity(other, case.checkpoint) not in found


@pytest.mark.parametrize("case", ["retinanet"], indirect=True)
class TestOtherConfigs:
    def test_detectron2s_evaluator(self, case: Case, tmp_path: Path) -> None:
        config = tmp_path / "theirs.py"
        more = (
            "from detectron2.evaluation import COCOEvaluator\n"
            'dataloader.evaluator = LazyCall(COCOEvaluator)(dataset_name="toy_test")\n'
        )
        config.write_text(case.config.read_text() + more)
        result = twins("eval", config, case.checkpoint, "--work-dir", tmp_path / "eval")
        assert result.code == 0, result.err
        assert result.out.count("there will be no report of it: dataloader.evaluator is a COCOEvaluator") == 1
        assert not (tmp_path / "eval" / "record").exists()
        ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (case.whole, tmp_path / "eval"))
        assert list(ours["metrics"]) == list(theirs["metrics"])
        # Widths and heights of boxes are rounded to float32 there.
        for name, value in theirs["metrics"].items():
            assert ours["metrics"][name] == (None if value is None else pytest.approx(value, abs=1e-3)), name

    def test_a_config_that_can_not_be_stored(self, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is recorded without its config, and resumes."""
        monkeypatch.syspath_prepend(case.config.parent)
        monkeypatch.delitem(sys.modules, "mappers", raising=False)
        more = "import mappers\ndataloader.test.mapper._target_ = mappers.BadMapper\n"
        (tmp_path / "own.py").write_text(case.config.read_text() + more)
        for _ in range(2):
            engine.evaluate(engine.load_config(tmp_path / "own.py"), case.checkpoint, tmp_path / "eval")
        record = read_record(tmp_path / "eval")
        assert record.is_complete and record.about.config == {}
        assert record.entries == read_record(case.whole).entries

    def test_an_evaluator_of_another_data_set(self, case: Case, tmp_path: Path) -> None:
        with pytest.raises(TwinsError, match="'coco_2017_val'"):
            case.evaluate(tmp_path / "eval", "dataloader.evaluator.dataset_name=coco_2017_val")
