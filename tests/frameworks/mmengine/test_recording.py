"""The record of an evaluation: what it contains, and that a resumed evaluation equals an undisturbed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_fixtures import NUM_VAL, Run, run_python
from mmengine.structures import BaseDataElement
from PIL import Image
from run_fixtures import config_of
from segmentation_fixtures import CLASSES

from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.data.image_files import read_image
from twins_dense.errors import TwinsError
from twins_dense.evaluation.record import Record, RecordWriter, read_record
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.detectors import TorchvisionDetector
from twins_dense.frameworks.mmengine.segmentors import SegmentationDataset  # noqa: F401  (makes mmseg work)

KILLED = """
import os, signal, sys
from twins_dense.evaluation.record import RecordWriter
from twins_dense.frameworks.mmengine import engine

add = RecordWriter.add

def add_or_die(self, entry):
    if entry["index"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)

RecordWriter.add = add_or_die
engine.evaluate(engine.load_config(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


@pytest.fixture(scope="module", autouse=True)
def exact_models() -> Iterator[None]:
    """Replace the forward passes, whose last digits depend on the memory that a process has used before."""

    def detect(self: TorchvisionDetector, inputs: Any, data_samples: Any, mode: str = "predict") -> list[Any]:
        elements = []
        for sample in data_samples:
            generator = torch.Generator().manual_seed(sample.image_id)
            corners = torch.rand(9, 2, 2, generator=generator).mul(64).sort(dim=1).values
            masks = torch.rand(9, 1, sample.height, sample.width, generator=generator)
            labels = torch.randint(3, (9,), generator=generator) + self.label_offset
            scores = torch.rand(9, generator=generator)
            fields = {"boxes": corners.flatten(1), "scores": scores, "labels": labels, "masks": masks}
            elements.append(self._element(sample, fields))
        return elements

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchvisionDetector, "forward", detect)
        # It has 3 channels for 3 classes.
        patch.setattr("mmseg.models.EncoderDecoder.encode_decode", lambda self, inputs, metas: inputs)
        yield


def evaluate(run: Run, folder: Path, *overrides: str) -> dict[str, float]:
    return engine.evaluate(config_of(run, list(overrides)), run.checkpoint, folder)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Make evaluations stop by Ctrl-C after a number of images, and return a list of the images that are recorded."""
    add, seen = RecordWriter.add, list[int]()

    def add_or_stop(writer: RecordWriter, entry: Any) -> None:
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(entry["index"])
        add(writer, entry)

    monkeypatch.setattr(RecordWriter, "add", add_or_stop)
    return seen


def content_of(record: Record) -> list[dict[str, Any]]:
    """Return the entries, with the bytes of the maps in the place of their names."""
    entries = []
    for entry in record.entries:
        maps = {
            name: (record.folder / entry[name]).read_bytes() for name in ("prediction", "confidence") if name in entry
        }
        entries.append({**entry, **maps})
    return entries


def assert_same_evaluation(found: Path, expected: Path) -> None:
    assert (found / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    assert content_of(read_record(found)) == content_of(read_record(expected))


@pytest.fixture(scope="module")
def detection(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    evaluate(tiny_run, folder)
    return folder


@pytest.fixture(scope="module")
def segmentation(segmentation_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    evaluate(segmentation_run, folder)
    return folder


class TestDetection:
    def test_entries(self, tiny_run: Run, detection: Path) -> None:
        record = read_record(detection)
        truth = json.loads((tiny_run.data / "annotations" / "instances_val2017.json").read_text())
        assert record.is_complete and len(record.entries) == NUM_VAL
        for entry, image in zip(record.entries, truth["images"], strict=True):
            assert Path(entry["file"]) == tiny_run.data / "val2017" / image["file_name"]
            assert entry["image"] == {key: image[key] for key in ("height", "width", "id")}
            assert entry["annotations"] == [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            for found in entry["detections"]:
                mask = decode_segmentation(found["segmentation"], image["height"], image["width"])
                assert mask.shape == (image["height"], image["width"])

    def test_about(self, tiny_run: Run, detection: Path) -> None:
        about = read_record(detection).about
        assert (about.task, about.engine, about.num_images) == ("detection", "mmengine", NUM_VAL)
        assert about.classes == ["circle", "rectangle", "triangle"]
        assert about.settings == {"category_ids": [1, 2, 5], "iou_types": ["bbox", "segm"], "max_dets": 100}
        assert about.checkpoint == str(tiny_run.checkpoint) and about.dataset.endswith("instances_val2017.json")
        assert about.config["model"]["type"] == "TwinsMaskRCNN" and about.device
        assert {"torch", "torchvision", "mmengine", "hotcoco"} <= about.versions.keys()

    @pytest.mark.parametrize("after", [0, 1, NUM_VAL - 1])
    def test_resume(self, tiny_run: Run, detection: Path, tmp_path: Path, after: int) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, after)
            evaluate(tiny_run, tmp_path / "out")
        assert len(read_record(tmp_path / "out").entries) == after
        with pytest.MonkeyPatch.context() as patch:
            seen = interrupt(patch, NUM_VAL)
            evaluate(tiny_run, tmp_path / "out")
        assert seen == list(range(after, NUM_VAL))
        assert_same_evaluation(tmp_path / "out", detection)

    def test_resume_after_a_kill_with_two_processes(self, tiny_run: Run, tmp_path: Path) -> None:
        checkpoint = tmp_path / "run" / "epoch_2.pth"
        checkpoint.parent.mkdir()
        shutil.copy(tiny_run.checkpoint, checkpoint)
        out = tmp_path / "run_eval" / "killed"
        assert run_python("-c", KILLED, str(tiny_run.config), str(checkpoint), str(out)).returncode == -9
        begun = read_record(out).entries
        assert [entry["index"] for entry in begun] == [0, 1]
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twins_dense", "eval")
        result = run_python(*launch, str(tiny_run.config), str(checkpoint), "--resume")
        assert result.returncode == 0, result.stderr
        assert f"2 of {NUM_VAL} images are finished" in result.stdout
        assert list(out.parent.iterdir()) == [out]
        record = read_record(out)
        assert record.is_complete and list(record.entries[:2]) == begun
        metrics = [json.loads((path / "metrics.json").read_text())["metrics"] for path in (out, tiny_run.work_dir)]
        assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)

    def test_a_finished_evaluation_needs_no_model(
        self, tiny_run: Run, detection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(detection, tmp_path / "out")
        (folder / "metrics.json").unlink()
        monkeypatch.setattr("twins_dense.frameworks.mmengine.runner._build_runner", None)
        evaluate(tiny_run, folder)
        assert_same_evaluation(folder, detection)

    @pytest.mark.parametrize("override", ["test_dataloader.batch_size=1", "model.options.box_score_thresh=0.4"])
    def test_another_evaluation_is_refused(self, tiny_run: Run, detection: Path, override: str) -> None:
        before = {path: path.read_bytes() for path in detection.rglob("*") if path.is_file()}
        with pytest.raises(TwinsError, match="another checkpoint, config or data set"):
            evaluate(tiny_run, detection, override)
        assert before == {path: path.read_bytes() for path in detection.rglob("*") if path.is_file()}

    def test_settings_that_do_not_change_results(self, tiny_run: Run, detection: Path) -> None:
        evaluate(tiny_run, detection, "test_dataloader.num_workers=1", "train_cfg.max_epochs=7")

    def test_a_foreign_metric_is_not_recorded(
        self, tiny_run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = config_of(tiny_run)
        monkeypatch.chdir(tmp_path)
        config.test_evaluator = [config.val_evaluator, {"type": "DumpResults", "out_file_path": "a.pkl"}]
        found = engine.evaluate(config, tiny_run.checkpoint, tmp_path / "out")
        assert found["coco/bbox_AP"] >= 0 and not (tmp_path / "out" / "record").exists()
        assert "there will be no report" in caplog.text and "CocoMetric, DumpResults" in caplog.text

    def test_a_model_that_loses_its_samples_is_not_recorded(
        self, tiny_run: Run, detection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        element = TorchvisionDetector._element

        def without_index(self: TorchvisionDetector, sample: Any, output: Any) -> Any:
            found = element(self, sample, output)
            kept = {name: value for name, value in found.metainfo.items() if name != "record_index"}
            return BaseDataElement(metainfo=kept, **dict(found.items()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TorchvisionDetector, "_element", without_index)
            evaluate(tiny_run, tmp_path / "out")
        assert (tmp_path / "out" / "metrics.json").read_bytes() == (detection / "metrics.json").read_bytes()
        assert not (tmp_path / "out" / "record").exists() and caplog.text.count("there will be no report") == 1


class TestSegmentation:
    def test_metrics_of_the_record_equal_mmsegmentation(self, segmentation: Path) -> None:
        """The recorded maps, scored by mmsegmentation's own metric, give what metrics.json says."""
        record = read_record(segmentation)
        assert record.is_complete and record.about.settings["first_value"] == 1
        from mmseg.evaluation import IoUMetric

        metric = IoUMetric(ignore_index=record.about.settings["ignore_index"])
        metric.dataset_meta = {"classes": CLASSES}
        predicted = set[int]()
        for entry in record.entries:
            prediction = np.asarray(Image.open(record.folder / entry["prediction"]))
            labels = np.asarray(Image.open(entry["labels"])).astype(int) - 1
            labels[labels == -1] = 255
            assert prediction.shape == (entry["height"], entry["width"])
            assert read_image(Path(entry["file"])).shape[:2] == prediction.shape
            predicted |= set(prediction.ravel().tolist())
            maps = {"pred_sem_seg": prediction.astype(int), "gt_sem_seg": labels}
            metric.process({}, [{name: {"data": torch.from_numpy(values)} for name, values in maps.items()}])
        assert len(predicted) > 1
        expected = metric.evaluate(len(record.entries))
        found = json.loads((segmentation / "metrics.json").read_text())["metrics"]
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value) / 100, abs=1e-6)
        for kind in ("IoU", "Acc"):
            of_classes = [found[f"{kind}/{name}"] for name in CLASSES]
            assert np.mean([value for value in of_classes if value is not None]) == pytest.approx(
                found[f"m{kind}"], abs=1e-4
            )

    @pytest.mark.parametrize("after", [1, NUM_VAL - 1])
    def test_resume(self, segmentation_run: Run, segmentation: Path, tmp_path: Path, after: int) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, after)
            evaluate(segmentation_run, tmp_path / "out")
        with pytest.MonkeyPatch.context() as patch:
            assert interrupt(patch, NUM_VAL) == []
            evaluate(segmentation_run, tmp_path / "out")
        assert_same_evaluation(tmp_path / "out", segmentation)

    def test_a_finished_evaluation_needs_no_model(
        self,
        segmentation_run: Run,
        segmentation: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = shutil.copytree(segmentation, tmp_path / "out")
        (folder / "metrics.json").unlink()
        monkeypatch.setattr("twins_dense.frameworks.mmengine.runner._build_runner", None)
        evaluate(segmentation_run, folder)
        assert_same_evaluation(folder, segmentation)

    def test_test_time_augmentation(self, segmentation_run: Run, tmp_path: Path) -> None:
        """The confidence belongs to the average over all views."""
        config = config_of(segmentation_run, ["test_dataloader.dataset.indices=1"])
        engine.set_tta(config)
        engine.evaluate(config, segmentation_run.checkpoint, tmp_path / "out")
        record = read_record(tmp_path / "out")
        (entry,) = record.entries
        found = np.asarray(Image.open(record.folder / entry["confidence"])) / 255
        assert found.shape == (entry["height"], entry["width"])
        assert found.min() >= 1 / len(CLASSES) - 0.002 and found.max() <= 1

    def test_mmsegmentations_own_metric_is_not_recorded(
        self,
        segmentation_run: Run,
        segmentation: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        found = evaluate(segmentation_run, tmp_path / "out", "test_evaluator.type=mmseg.IoUMetric")
        expected = json.loads((segmentation / "metrics.json").read_text())["metrics"]
        assert found == {name: expected[name] for name in ("aAcc", "mIoU", "mAcc")}
        assert not (tmp_path / "out" / "record").exists() and "twins_dense.IoUMetric" in caplog.text
        copy = shutil.copytree(segmentation, tmp_path / "copy")
        with pytest.raises(TwinsError, match="copy' contains another evaluation: choose another --work-dir"):
            evaluate(segmentation_run, copy, "test_evaluator.type=mmseg.IoUMetric")
        assert json.loads((copy / "metrics.json").read_text())["metrics"] == expected


class TestConfidence:
    @pytest.fixture
    def confidence(self) -> Any:
        from twins_dense.frameworks.mmengine.iou_metric import confidence

        return confidence

    def test_large_images_are_sampled(self, confidence: Any) -> None:
        logits = torch.zeros(4, 300, 520)
        logits[1, ::3, ::3] = 50
        found = confidence(logits)
        assert found.shape == (100, 174) and (found == 255).all()

    def test_probability_of_the_predicted_class(self, confidence: Any) -> None:
        logits = torch.tensor([0.0, np.log(3)]).view(2, 1, 1).expand(2, 5, 7)
        assert (confidence(logits) == round(255 * 0.75)).all()
        assert confidence(torch.tensor([[[0.2, 0.9]]])).tolist() == [[204, 230]]
