"""User errors with detectron2 give one line and exit code 2, and leave existing files unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import Malicious, Result, assert_error, cut, snapshot, twins
from d2_fixtures import CONFIGS, MARKS, clean_detectron2, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import CONFIGS as MMENGINE_CONFIGS
from detection_fixtures import TINY_SVT
from PIL import Image

import twins_dense as td

pytestmark = MARKS


@dataclass(frozen=True)
class Run:
    """The files of a finished run: config, work directory and last checkpoint."""

    config: Path
    work_dir: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Run:
    """A tiny Mask R-CNN after 6 iterations. Tests must not change it."""
    root = tmp_path_factory.mktemp("run")
    config = write_lazy(root / "tiny.py", toy_data, more="train.max_iter = 6\n")
    result = twins("train", config, "--work-dir", root / "work")
    assert result.code == 0, result.err
    return Run(config, root / "work", root / "work" / "model_final.pth")


@dataclass(frozen=True)
class Case:
    """A copy of the toy data, a tiny RetinaNet, and a work directory that contains files of the user."""

    data: Path
    config: Path
    work_dir: Path

    def train(self, *arguments: object) -> Result:
        return twins("train", self.config, "--work-dir", self.work_dir, "--data-root", self.data, *arguments)

    def assert_nothing_changed(self) -> None:
        left = snapshot(self.work_dir)
        assert left["notes.txt"] == b"keep me" and left["model_7.pth"] == b"mine"
        assert not {"last_checkpoint", "metrics.json"} & left.keys()
        assert [name for name in left if name.endswith(".pth")] == ["model_7.pth"]


@pytest.fixture
def case(tmp_path: Path, toy_data: Path) -> Case:
    shutil.copytree(toy_data, tmp_path / "toy")
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / "notes.txt").write_bytes(b"keep me")
    (work_dir / "model_7.pth").write_bytes(b"mine")
    more = "train.update(max_iter=1, eval_period=1)\n"
    config = write_lazy(tmp_path / "tiny.py", tmp_path / "elsewhere", "retinanet", more=more)
    return Case(tmp_path / "toy", config, work_dir)


def change_annotation(**values: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        path = case.data / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"][2].update(values)
        path.write_text(json.dumps(content))

    return change


DAMAGES: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "missing image": (
        lambda case: (case.data / "train2017" / "000000000003.jpg").unlink(),
        ("000000000003.jpg is missing",),
    ),
    "truncated image": (
        lambda case: cut(case.data / "train2017" / "000000000003.jpg"),
        ("000000000003.jpg cannot be read",),
    ),
    "missing validation image": (
        lambda case: (case.data / "val2017" / "000000000009.jpg").unlink(),
        ("000000000009.jpg is missing",),
    ),
    "broken JSON": (
        lambda case: cut(case.data / "annotations" / "instances_train2017.json"),
        ("broken JSON at line 1",),
    ),
    "unknown category": (change_annotation(category_id=77), ("unknown category id 77",)),
    "no image folder": (lambda case: shutil.rmtree(case.data / "val2017"), ("val2017", "no such folder")),
}


class TestErrorsOfTraining:
    @pytest.mark.parametrize("name", DAMAGES)
    def test_bad_data(self, case: Case, name: str) -> None:
        damage, parts = DAMAGES[name]
        damage(case)
        assert_error(case.train(), *parts)
        case.assert_nothing_changed()

    def test_skip_bad(self, case: Case) -> None:
        DAMAGES["missing image"][0](case)
        DAMAGES["missing validation image"][0](case)
        result = case.train("--skip-bad", "--no-report")
        assert result.code == 0, result.err
        assert result.out.count("Left out, 1 in all:\n") == 2
        assert "000000000003.jpg is missing" in result.out and "000000000009.jpg is missing" in result.out
        assert (case.work_dir / "notes.txt").read_bytes() == b"keep me"

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (["model.num_classes=4"], ("3 categories", "4 classes", "model.num_classes=3")),
            (["model.backbone.bottom_up.net.weights=no/such.pth"], ("no/such.pth", "no such file")),
            (["model.backbone.bottom_up.net.window_padding=edge"], ("'edge'", "'zeros'")),
            (["train.init_checkpoint=no/such.pth"], ("no/such.pth", "no such file")),
            (["model.num_clases=3"], ("did you mean 'num_classes'?",)),
            (["dataloader.train.total_batch_size=0"], ("total_batch_size=0",)),
            (["train.max_iter=0"], ("train.max_iter=0",)),
            (["train.max_iter=soon"], ("train.max_iter", "soon")),
            (["optimizer.lr=fast"], ("lr", "fast")),
            (["train.checkpointer.period=0"], ("period=0",)),
            (["train.log_period=0"], ("log_period=0",)),
            (["train.seed=-1"], ("seed=-1",)),
            (["train.seed=null"], ("seed=None",)),
            (["train.init_checkpoint=3"], ("train.init_checkpoint=3",)),
            (["train.checkpointer.max_to_keep=0"], ("max_to_keep=0",)),
            (["train.auto_scale_lr.base_batch_size=0"], ("base_batch_size=0",)),
            (["train.amp.dtype=half"], ("'half'", "bfloat16")),
            (["train.ddp=3"], ("train.ddp", "broadcast_buffers")),
            (["dataloader.train.dataset.ann_file=null"], ("give both or neither",)),
        ],
    )
    def test_bad_settings(self, case: Case, overrides: list[str], parts: tuple[str, ...]) -> None:
        assert_error(case.train(*overrides), *parts)
        case.assert_nothing_changed()

    def test_ranks_of_machines_start_at_0(self, case: Case) -> None:
        machines = ("--num-machines", 2, "--machine-rank", 2, "--dist-url", "tcp://127.0.0.1:1")
        assert_error(case.train(*machines), "--machine-rank 2")
        case.assert_nothing_changed()

    @pytest.mark.parametrize("verb", [("train",), ("eval", "model.pth"), ("check-data",)])
    def test_a_part_of_a_config(self, verb: tuple[str, ...], case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        part = CONFIGS / "common" / "mask_rcnn_1x.py"
        monkeypatch.chdir(case.work_dir)
        result = twins(verb[0], part, *verb[1:])
        assert_error(result, *(("train.output_dir", "--work-dir") if verb[0] != "check-data" else ()))
        case.assert_nothing_changed()

    def test_check_data_looks_at_masks_too(self, case: Case) -> None:
        """Run-length masks do not work if polygons are expected; detectron2 would fail in the middle of a run."""
        change_annotation(segmentation={"size": [64, 64], "counts": [0, 4096]})(case)
        config = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
        assert_error(twins("check-data", config, "--data-root", case.data), "INPUT.MASK_FORMAT=bitmask")

    def test_weights_of_another_variant(self, case: Case, tmp_path: Path) -> None:
        spec = td.TwinsSpec.from_columns(**{**TINY_SVT, "dims": (8, 32, 32, 64)})
        path = tmp_path / "other.pth"
        torch.save(td.create_classifier(spec).state_dict(), path)
        assert_error(case.train(f"model.backbone.bottom_up.net.weights={path}"), str(path), "(8, ", "(16, ")
        case.assert_nothing_changed()

    def test_a_folder_with_a_run(self, run: Run) -> None:
        before = snapshot(run.work_dir)
        assert_error(twins("train", run.config, "--work-dir", run.work_dir), "--resume", "--work-dir")
        assert_error(twins("eval", run.config, run.checkpoint, "--work-dir", run.work_dir), "--work-dir")
        assert snapshot(run.work_dir) == before

    def test_a_folder_without_one(self, case: Case, tmp_path: Path) -> None:
        assert_error(case.train("--resume"), repr(str(case.work_dir)), "no run to resume")
        result = twins("train", case.config, "--work-dir", tmp_path / "new", "--resume")
        assert_error(result, "no run to resume")
        assert not (tmp_path / "new").exists()
        case.assert_nothing_changed()

    def test_resuming_with_another_model(self, run: Run, tmp_path: Path) -> None:
        shutil.copytree(run.work_dir, tmp_path / "run")
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
        option = "model.roi_heads.mask_head.conv_dims=[16,16]"
        result = twins("train", run.config, "--work-dir", tmp_path / "run", "--resume", option)
        assert_error(result, "model_final.pth", "another model", "mask_head")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")} == before

    def test_resuming_behind_the_end(self, run: Run, tmp_path: Path) -> None:
        shutil.copytree(run.work_dir, tmp_path / "run")
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
        result = twins("train", run.config, "--work-dir", tmp_path / "run", "--resume", "train.max_iter=3")
        assert_error(result, "train.max_iter=3", "6")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")} == before

    def test_a_file_in_the_place_of_the_folder(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert_error(twins("train", run.config, "--work-dir", tmp_path / "file"), "is a file")
        assert_error(twins("eval", run.config, run.checkpoint, "--work-dir", tmp_path / "file"), "is a file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_launching(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ("train", run.config, "--work-dir", tmp_path / "run")
        assert_error(twins(*arguments, "--num-machines", 2), "--dist-url")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert_error(twins(*arguments), "torchrun", "--num-gpus")
        assert_error(
            twins("eval", run.config, run.checkpoint, "--work-dir", tmp_path / "run"), "torchrun", "--num-gpus"
        )
        assert not (tmp_path / "run").exists()

    def test_one_process_unless_more_are_asked_for(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As `--help` says, this holds even if there are several GPUs."""
        asked: list[tuple[int, Any]] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(
            "twins_dense.frameworks.detectron2.launch.launch_processes",
            lambda function, num_gpus, **options: asked.append((num_gpus, options["num_machines"])),
        )
        twins("train", run.config, "--work-dir", tmp_path / "run")
        twins("train", run.config, "--work-dir", tmp_path / "run", "--num-gpus", 2)
        assert asked == [(1, 1), (2, 1)]
        help_text = " ".join(twins("train", "--help").out.split())
        assert "--num-gpus INTEGER RANGE detectron2: processes on this machine, one per GPU. [default: 1]" in help_text

    @pytest.mark.parametrize("verb", ["train", "eval"])
    def test_its_options_with_a_config_of_mmengine(self, tmp_path: Path, verb: str) -> None:
        config = MMENGINE_CONFIGS / "mask_rcnn_svt_small_1x.py"
        checkpoint = ["epoch_1.pth"] if verb == "eval" else []
        result = twins(verb, config, *checkpoint, "--work-dir", tmp_path / "run", "--num-gpus", 2)
        assert_error(result, "--num-gpus", "torchrun")
        assert not (tmp_path / "run").exists()


class TestErrorsOfCheckpoints:
    @pytest.fixture(params=["eval", "predict"])
    def use(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        """Return a function that runs the command with a config, a checkpoint and overrides.

        The function also checks that no results are written.
        """

        def call(config: Path, checkpoint: object, *overrides: object) -> Result:
            images = [tmp_path / "photo.png"] if request.param == "predict" else []
            for image in images:
                Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(image)
            target = ("--out" if images else "--work-dir", tmp_path / "out")
            result = twins(request.param, config, checkpoint, *images, *target, *overrides)
            assert not list(tmp_path.glob("out/*.json")) and not list(tmp_path.glob("out/*.jpg"))
            return result

        return call

    def test_missing(self, run: Run, use: Any) -> None:
        assert_error(use(run.config, "no/model_final.pth"), "no/model_final.pth", "no such file")

    def test_truncated(self, run: Run, use: Any, tmp_path: Path) -> None:
        shutil.copy(run.checkpoint, tmp_path / "cut.pth")
        cut(tmp_path / "cut.pth")
        assert_error(use(run.config, tmp_path / "cut.pth"), str(tmp_path / "cut.pth"))

    def test_of_another_model(self, run: Run, use: Any) -> None:
        result = use(run.config, run.checkpoint, "model.roi_heads.num_classes=5")
        assert_error(result, str(run.checkpoint), "another model", "overrides")

    def test_backbone_weights(self, run: Run, use: Any, tmp_path: Path) -> None:
        path = tmp_path / "backbone.pth"
        torch.save(td.create_classifier(td.TwinsSpec.from_columns(**TINY_SVT)).state_dict(), path)
        assert_error(use(run.config, path), str(path), "model.backbone.bottom_up.net.weights")

    def test_code_in_it_is_not_run(self, run: Run, use: Any, tmp_path: Path) -> None:
        torch.save({"model": Malicious(tmp_path / "trace")}, tmp_path / "evil.pth")
        assert_error(use(run.config, tmp_path / "evil.pth"), str(tmp_path / "evil.pth"))
        assert not (tmp_path / "trace").exists()

    def test_other_categories_than_the_data(self, run: Run, tmp_path: Path, toy_data: Path) -> None:
        shutil.copytree(toy_data, tmp_path / "toy")
        path = tmp_path / "toy" / "annotations" / "instances_val2017.json"
        path.write_text(path.read_text().replace('"circle"', '"ring"'))
        result = twins(
            "eval", run.config, run.checkpoint, "--data-root", tmp_path / "toy", "--work-dir", tmp_path / "out"
        )
        assert_error(result, "ring", "circle", "different categories")
