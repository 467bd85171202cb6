"""`twins-dense train` and `eval` on bad data and settings: nothing changes, and --skip-bad goes on without them."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import Malicious, Result, assert_error, cut, snapshot, twins
from detection_fixtures import TINY_SVT, Run, write_config

import twins_dense as td
from twins_dense.evaluation.metrics_file import read_metrics
from twins_dense.evaluation.record import read_record
from twins_dense.frameworks.work_dir import best_checkpoint


@dataclass(frozen=True)
class Case:
    """A copy of the toy data with a config, and a work directory that holds something of the user's."""

    root: Path
    data: Path
    config: Path
    work_dir: Path

    def train(self, *arguments: object) -> Result:
        return twins("train", self.config, "--work-dir", self.work_dir, "--data-root", self.data, *arguments)

    def edit_annotations(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.data / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def assert_nothing_changed(self) -> None:
        left = snapshot(self.work_dir)
        assert left["notes.txt"] == b"keep me" and left["epoch_7.pth"] == b"mine"
        assert not {"last_checkpoint", "metrics.json"} & left.keys()
        assert [name for name in left if name.endswith(".pth")] == ["epoch_7.pth"]


@pytest.fixture
def case(tmp_path: Path, toy_data: Path, request: pytest.FixtureRequest) -> Case:
    shutil.copytree(toy_data, tmp_path / "toy")
    # A name of its own: MMEngine tells runs in one process apart by name and second.
    name = re.sub(r"\W+", "_", request.node.name)
    config = write_config(tmp_path / f"{name}.py", tmp_path / "elsewhere")
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / "notes.txt").write_bytes(b"keep me")
    (work_dir / "epoch_7.pth").write_bytes(b"mine")
    return Case(tmp_path, tmp_path / "toy", config, work_dir)


def break_json(case: Case) -> None:
    cut(case.data / "annotations" / "instances_train2017.json")


def change_annotation(**values: Any) -> Callable[[Case], None]:
    return lambda case: case.edit_annotations(lambda content: content["annotations"][2].update(values))


DAMAGES: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "missing image": (
        lambda case: (case.data / "train2017" / "000000000003.jpg").unlink(),
        ("000000000003.jpg is missing", "--skip-bad"),
    ),
    "truncated image": (
        lambda case: cut(case.data / "train2017" / "000000000003.jpg"),
        ("000000000003.jpg cannot be read", "--skip-bad"),
    ),
    "missing validation image": (
        lambda case: (case.data / "val2017" / "000000000009.jpg").unlink(),
        ("000000000009.jpg is missing", "--skip-bad"),
    ),
    "broken JSON": (break_json, ("instances_train2017.json: broken JSON at line 1, column ",)),
    "unknown image": (change_annotation(image_id=999), ("unknown image id 999",)),
    "unknown category": (change_annotation(category_id=77), ("unknown category id 77",)),
    "box outside": (change_annotation(bbox=[70, 70, 5, 5]), ("[70, 70, 5, 5]", "outside", "64x64")),
    "box of no area": (change_annotation(bbox=[3, 3, -1, 5]), ("[3, 3, -1, 5]", "no area")),
    "no annotation file": (
        lambda case: (case.data / "annotations" / "instances_train2017.json").unlink(),
        ("instances_train2017.json: no such file",),
    ),
    "no image folder": (lambda case: shutil.rmtree(case.data / "train2017"), ("train2017", "no such folder")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_train_on_bad_data(case: Case, name: str) -> None:
    damage, parts = DAMAGES[name]
    damage(case)
    assert_error(case.train(), *parts)
    case.assert_nothing_changed()


def test_strict_data_refuses_boxes_of_no_width(case: Case) -> None:
    change_annotation(bbox=[3, 3, 0, 5])(case)
    for option in ("train_dataloader.dataset.strict=True", "--strict"):
        assert_error(case.train(option), "[3, 3, 0, 5]", "no area")
    case.assert_nothing_changed()


def test_eval_on_bad_data(case: Case, tiny_run: Run) -> None:
    DAMAGES["missing validation image"][0](case)
    arguments = ("eval", case.config, tiny_run.checkpoint, "--data-root", case.data)
    assert_error(twins(*arguments, "--work-dir", case.root / "out"), "000000000009.jpg is missing")
    assert not (case.root / "out" / "metrics.json").exists()


class TestTrainWithBadSettings:
    def test_weights_of_another_variant(self, case: Case) -> None:
        spec = td.TwinsSpec.from_columns(**{**TINY_SVT, "dims": (8, 32, 32, 64)})
        path = case.root / "other.pth"
        torch.save(td.create_classifier(spec).state_dict(), path)
        assert_error(case.train(f"model.backbone.weights={path}"), str(path), "tiny", "(8, ", "(16, ")
        case.assert_nothing_changed()

    def test_truncated_weights(self, case: Case) -> None:
        path = case.root / "cut.pth"
        torch.save(td.create_classifier(td.TwinsSpec.from_columns(**TINY_SVT)).state_dict(), path)
        cut(path)
        assert_error(case.train(f"model.backbone.weights={path}"), str(path))
        case.assert_nothing_changed()

    def test_missing_weights(self, case: Case) -> None:
        assert_error(case.train("model.backbone.weights=no/such.pth"), "no/such.pth", "no such file")
        case.assert_nothing_changed()

    @pytest.mark.parametrize("as_zip", [True, False])
    def test_malicious_pickle(self, case: Case, as_zip: bool) -> None:
        path, trace = case.root / "evil.pth", case.root / "trace"
        if as_zip:
            torch.save({"blocks": Malicious(trace)}, path)
        else:
            path.write_bytes(pickle.dumps({"blocks": Malicious(trace)}))
        assert_error(case.train(f"model.backbone.weights={path}"), str(path))
        assert not trace.exists()
        case.assert_nothing_changed()
        with path.open("rb") as file, contextlib.suppress(Exception):  # the trap works where it is let loose
            torch.load(file, weights_only=False) if as_zip else pickle.load(file)
        assert trace.exists()

    def test_unknown_config_key(self, case: Case) -> None:
        case.config.write_text(case.config.read_text() + "\ntrain_cgf = dict()\n")
        assert_error(case.train(), str(case.config), "'train_cgf'", "did you mean 'train_cfg'?")
        case.assert_nothing_changed()

    @pytest.mark.parametrize(
        ("override", "hint"),
        [
            ("model.num_clases=3", "did you mean 'num_classes'?"),
            ("train_dataloader.batchsize=4", "did you mean 'batch_size'?"),
            ("lr", "key=value"),
        ],
    )
    def test_unknown_override(self, case: Case, override: str, hint: str) -> None:
        assert_error(case.train(override), repr(override), hint)
        case.assert_nothing_changed()
        assert len(snapshot(case.work_dir)) == 2

    def test_unknown_variant(self, case: Case) -> None:
        assert_error(case.train("model.backbone.variant=svt_smal"), "'svt_smal'", "did you mean 'svt_small'?")
        case.assert_nothing_changed()

    def test_other_number_of_classes(self, case: Case) -> None:
        assert_error(case.train("model.num_classes=4"), "3 categories", "4 classes", "model.num_classes=3")
        case.assert_nothing_changed()

    def test_a_work_dir_with_a_run(self, tiny_run: Run) -> None:
        before = snapshot(tiny_run.work_dir)
        assert_error(twins("train", tiny_run.config, "--work-dir", tiny_run.work_dir), "--resume", "--work-dir")
        assert snapshot(tiny_run.work_dir) == before


class TestReport:
    """Training ends with an evaluation of the best checkpoint and a report, and does not fail with them."""

    @pytest.mark.parametrize("fixture", ["tiny_run", "segmentation_run"])
    def test_of_a_run(self, fixture: str, request: pytest.FixtureRequest) -> None:
        run: Run = request.getfixturevalue(fixture)
        record = read_record(run.work_dir / "evaluation")
        assert record.is_complete
        assert Path(record.about.checkpoint).name == best_checkpoint(run.work_dir).name
        assert read_metrics(run.work_dir / "evaluation")
        page = (run.work_dir / "report.html").read_text(encoding="utf-8")
        for part in ("Report of work", "Learning curves", "tiny", "Worst images"):
            assert part in page

    def test_it_can_be_left_out(self, case: Case) -> None:
        result = case.train("--no-report")
        assert (result.code, result.err) == (0, "")
        assert not {"report.html", "evaluation"} & {path.name for path in case.work_dir.iterdir()}

    def test_a_failure_is_a_warning_and_resuming_a_finished_run_writes_it(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any, **options: Any) -> None:
            raise RuntimeError("no space left\non this device")

        with monkeypatch.context() as patch:
            patch.setattr("twins_dense.evaluation.report.build.write_page", fail)
            result = case.train()
        assert (result.code, result.err) == (0, "warning: there is no report (no space left on this device)\n")
        assert (case.work_dir / "epoch_1.pth").is_file() and not (case.work_dir / "report.html").exists()
        files = {path: path.stat().st_mtime_ns for path in (case.work_dir / "evaluation" / "record").iterdir()}
        result = case.train("--resume")
        assert (result.code, result.err) == (0, "")
        assert (case.work_dir / "report.html").is_file()
        # The images are not evaluated again.
        assert {path: path.stat().st_mtime_ns for path in files if path.name == "about.json"}.items() <= files.items()
        result = case.train("--resume", "--no-report")
        assert f"renew it by `twins-dense eval {case.work_dir}`" in result.out
        for path in files:
            path.write_text("{")
        assert case.train("--resume").err == ""
        assert read_record(case.work_dir / "evaluation").is_complete


class TestSkipBad:
    def test_trains_on_the_rest_and_lists_what_it_left_out(self, case: Case) -> None:
        DAMAGES["missing image"][0](case)
        DAMAGES["box of no area"][0](case)
        result = case.train("--skip-bad")
        assert result.code == 0, result.err
        assert result.out.splitlines()[-1].startswith(f"done: {case.work_dir} ")
        (log,) = case.work_dir.glob("*/*.log")
        for text in (log.read_text(), result.out):
            listed = text.split("Left out, 2 in all:\n")[1].splitlines()[:2]
            assert "000000000003.jpg is missing" in listed[0] and "has no area" in listed[1]
        # 7 images in batches of 2.
        assert torch.load(case.work_dir / "epoch_1.pth", weights_only=True)["meta"]["iter"] == 4
        content = json.loads((case.work_dir / "metrics.json").read_text())
        assert "coco/segm_AP" in content["metrics"]
        assert (case.work_dir / "notes.txt").read_bytes() == b"keep me"

    def test_lists_validation_images_too(self, case: Case) -> None:
        DAMAGES["missing image"][0](case)
        DAMAGES["missing validation image"][0](case)
        result = case.train("--skip-bad")
        assert result.code == 0, result.err
        assert "000000000003.jpg is missing" in result.out
        assert "000000000009.jpg is missing" in result.out

    def test_eval(self, case: Case, tiny_run: Run) -> None:
        DAMAGES["missing validation image"][0](case)
        arguments = (
            "eval",
            case.config,
            tiny_run.checkpoint,
            "--data-root",
            case.data,
            "--work-dir",
            case.root / "out",
        )
        result = twins(*arguments, "--skip-bad")
        assert result.code == 0, result.err
        assert "Left out, 1 in all:\n" in result.out and "000000000009.jpg is missing" in result.out
