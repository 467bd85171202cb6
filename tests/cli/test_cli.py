"""The command line: help, exit codes, one clear line for what can't be used, and what each verb leaves behind."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import Malicious, Result, assert_error, cut, snapshot, twins
from detection_fixtures import TINY_SVT, Run, run_python, write_config
from PIL import Image
from pycocotools import mask as mask_utils

import twins_dense as td
from twins_dense.frameworks.mmengine.demo import demo_config

VERBS = (
    "demo",
    "train",
    "eval",
    "predict",
    "check-data",
    "validate",
    "weights",
    "convert",
    "extract",
    "export",
    "info",
    "benchmark",
)


class TestUsage:
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help(self, flag: str) -> None:
        result = twins(flag)
        assert (result.code, result.err) == (0, "")
        for verb in VERBS:
            assert re.search(rf"^  {verb} ", result.out, re.MULTILINE)
        assert "twins-dense demo" in result.out.split("Examples:")[1]

    @pytest.mark.parametrize("verb", VERBS)
    def test_help_of_a_verb(self, verb: str) -> None:
        result = twins(verb, "--help")
        assert (result.code, result.err) == (0, "")
        assert f"twins-dense {verb}" in result.out.split("Examples:")[1]
        assert "Options:" in result.out

    def test_version(self) -> None:
        result = twins("--version")
        assert result.code == 0 and td.__version__ in result.out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["fly"], "fly"),
            (["train"], "CONFIG"),
            (["train", "a.py", "--fast"], "--fast"),
            (["predict", "a.py", "b.pth"], "IMAGES"),
            (["predict", "a.py", "b.pth", "c.jpg", "--score", "1.5"], "1.5"),
            (["demo", "--epochs", "0"], "0"),
        ],
    )
    def test_wrong_usage(self, arguments: list[str], words: str) -> None:
        result = twins(*arguments)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert words in result.err.splitlines()[-1]

    @pytest.mark.parametrize("start", [["-m", "twins_dense"], [str(Path(sys.executable).with_name("twins-dense"))]])
    def test_as_a_program(self, tmp_path: Path, start: list[str]) -> None:
        result = run_python(*start, "train", "nowhere.py", cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr == "error: config 'nowhere.py': no such file; check the path\n"
        assert list(tmp_path.iterdir()) == []


# Bad inputs of `train`


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
    "box of no area": (change_annotation(bbox=[3, 3, 0, 5]), ("[3, 3, 0, 5]", "no area")),
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


# eval


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
        shown = dict(re.findall(r"^ *(coco/\w+)  (-?\d\.\d{4})$", result.out, re.MULTILINE))
        assert shown == {name: f"{value:.4f}" for name, value in found.items()}
        assert result.out.splitlines()[-1].startswith(str(tmp_path / "out" / "metrics.json"))

    def test_default_folder_and_pycocotools(
        self, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = named(tiny_run, "eval_default", tmp_path)
        config.write_text(config.read_text() + "\ntest_evaluator.update(backend='faster-coco-eval')\n")
        result = twins("eval", config, tiny_run.checkpoint, "test_evaluator.backend=pycocotools")
        assert result.code == 0, result.err
        (path,) = tmp_path.glob("work_dirs/eval_default_eval/*/metrics.json")
        expected = json.loads((tiny_run.work_dir / "metrics.json").read_text())["metrics"]
        assert json.loads(path.read_text())["metrics"] == pytest.approx(expected, abs=1e-6)

    def test_bad_data(self, case: Case, tiny_run: Run) -> None:
        DAMAGES["missing validation image"][0](case)
        arguments = ("eval", case.config, tiny_run.checkpoint, "--data-root", case.data)
        assert_error(twins(*arguments, "--work-dir", case.root / "out"), "000000000009.jpg is missing")
        assert not (case.root / "out" / "metrics.json").exists()

    def test_a_missing_checkpoint(self, tiny_run: Run, tmp_path: Path) -> None:
        config = named(tiny_run, "eval_missing", tmp_path)
        result = twins("eval", config, "no/epoch_9.pth", "--work-dir", tmp_path / "out")
        assert_error(result, "no/epoch_9.pth", "no such file")
        assert not (tmp_path / "out" / "metrics.json").exists()


# predict


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and kinds; two of one name, and two that differ by their suffix alone."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    (root / "folder" / "sub").mkdir(parents=True)
    noise(71, 97, 3).save(root / "single.png")
    noise(61, 83).save(root / "gray.png")
    noise(64, 64, 3).save(root / "folder" / "a.jpg")
    noise(67, 73, 3).save(root / "folder" / "a.png")
    noise(101, 79, 3).save(root / "folder" / "sub" / "a.JPG", "JPEG")
    (root / "folder" / "notes.txt").write_text("no image")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    noise(64, 89, 3).save(root / "turned.jpg", exif=turned)
    return root


# (width, height), upright
SIZES = {
    "single.png": (97, 71),
    "gray.png": (83, 61),
    "folder/a.jpg": (64, 64),
    "folder/a.png": (73, 67),
    "folder/sub/a.JPG": (79, 101),
    "turned.jpg": (64, 89),
}


class TestPredict:
    def test_files_folders_and_globs(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = [photos / "single.png", photos / "folder", f"{photos}/g*.png", f"{photos}/s*.png"]
        arguments.append(photos / "turned.jpg")
        result = twins(
            "predict", tiny_run.config, tiny_run.checkpoint, *arguments, "--out", out, "--score", 0, "model.max_size=90"
        )
        assert result.code == 0, result.err
        entries = json.loads((out / "predictions.json").read_text())
        order = ["single.png", "folder/a.jpg", "folder/a.png", "folder/sub/a.JPG", "gray.png", "turned.jpg"]
        assert [entry["file"] for entry in entries] == [str(photos / name) for name in order]  # each once
        assert len({entry["picture"] for entry in entries}) == len(order)
        count = 0
        for name, entry in zip(order, entries, strict=True):
            width, height = SIZES[name]
            assert (entry["width"], entry["height"]) == (width, height)
            with Image.open(entry["picture"]) as picture:
                assert picture.size == (width, height)
            assert Path(entry["picture"]).is_relative_to(out)
            for detection in entry["detections"]:
                count += 1
                assert set(detection) == {"category_id", "category", "bbox", "score", "segmentation"}
                assert {1: "circle", 2: "rectangle", 5: "triangle"}[detection["category_id"]] == detection["category"]
                x, y, w, h = detection["bbox"]
                assert 0 <= x < x + w <= width + 1e-3 and 0 <= y < y + h <= height + 1e-3
                assert 0 <= detection["score"] <= 1
                assert detection["segmentation"]["size"] == [height, width]
                assert 0 <= mask_utils.area(detection["segmentation"]) <= width * height
        assert count > len(order)
        assert f"{count} instances in 6 images" in result.out

    def test_a_link_to_an_image_elsewhere(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "photo.png").symlink_to(photos / "single.png")
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, tmp_path / "links", "--out", tmp_path / "out")
        assert result.code == 0, result.err
        assert (tmp_path / "out" / "photo.png.jpg").is_file()

    def test_score(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        """The threshold keeps what is at or above it; the pictures of no detection are the images."""
        kept: dict[float, list[float]] = {}
        for score in (0.0, 0.2, 1.0):
            out = tmp_path / str(score)
            result = twins(
                "predict", tiny_run.config, tiny_run.checkpoint, photos / "single.png", "--out", out, "--score", score
            )
            assert result.code == 0, result.err
            (entry,) = json.loads((out / "predictions.json").read_text())
            kept[score] = [detection["score"] for detection in entry["detections"]]
        assert kept[0.2] == [score for score in kept[0.0] if score >= 0.2]
        assert kept[1.0] == [] and kept[0.0]
        plain = np.asarray(Image.open(photos / "single.png"), dtype=float)
        (empty,) = (tmp_path / "1.0").glob("*.jpg")
        (drawn,) = (tmp_path / "0.0").glob("*.jpg")
        differences = [np.abs(np.asarray(Image.open(path), dtype=float) - plain).mean() for path in (empty, drawn)]
        assert differences[0] < differences[1]

    @pytest.mark.parametrize("content", ["a folder with a file", "a file"])
    def test_refuses_a_folder_that_is_not_empty(
        self, tiny_run: Run, photos: Path, tmp_path: Path, content: str
    ) -> None:
        out = tmp_path / "out"
        if content == "a file":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "mine.txt").write_text("mine")
        before = snapshot(tmp_path)
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, photos / "single.png", "--out", out)
        assert_error(result, str(out), "not empty", "--out")
        assert snapshot(tmp_path) == before

    def test_a_corrupt_image(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "folder", tmp_path / "in")
        cut(tmp_path / "in" / "a.png")
        arguments = ("predict", tiny_run.config, tiny_run.checkpoint, tmp_path / "in", "--out")
        assert_error(twins(*arguments, tmp_path / "first"), str(tmp_path / "in" / "a.png"), "--skip-bad")
        assert not (tmp_path / "first" / "predictions.json").exists()
        result = twins(*arguments, tmp_path / "second", "--skip-bad")
        assert result.code == 0
        (line,) = [line for line in result.err.splitlines() if line.startswith("left out: ")]
        assert str(tmp_path / "in" / "a.png") in line
        entries = json.loads((tmp_path / "second" / "predictions.json").read_text())
        assert [Path(entry["file"]).name for entry in entries] == ["a.jpg", "a.JPG"]

    @pytest.mark.parametrize("name", ["nothing.jpg", "*.gif", "empty"])
    def test_no_image(self, tiny_run: Run, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        argument = str(tmp_path / name)
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, argument, "--out", tmp_path / "out")
        assert_error(result, repr(argument))
        assert not (tmp_path / "out").exists()

    def test_only_overrides(self, tiny_run: Run, tmp_path: Path) -> None:
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, "model.min_size=64", "--out", tmp_path / "out")
        assert_error(result, "no images given")

    def test_a_malicious_checkpoint(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        torch.save({"meta": {}, "state_dict": Malicious(tmp_path / "trace")}, tmp_path / "evil.pth")
        arguments = ("predict", tiny_run.config, tmp_path / "evil.pth", photos / "single.png")
        assert_error(twins(*arguments, "--out", tmp_path / "out"), str(tmp_path / "evil.pth"))
        assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


# info, benchmark, demo

# Parameters, and GMACs at 224x224, of the classifiers.
PUBLISHED = {
    "pcpvt_small": (24_106_216, 3.81),
    "pcpvt_base": (43_828_456, 6.65),
    "pcpvt_large": (60_989_672, 9.81),
    "svt_small": (24_060_776, 2.93),
    "svt_base": (56_070_952, 8.56),
    "svt_large": (99_271_400, 15.11),
}
# GMACs of the dense backbones at 800x1216.
DENSE = {"pcpvt_small": 124.68, "pcpvt_base": 206.11, "pcpvt_large": 301.01}


class TestInfo:
    def test_json(self) -> None:
        result = twins("info", "--json")
        assert (result.code, result.err) == (0, "")
        rows = {row["variant"]: row for row in json.loads(result.out)}
        assert list(rows) == list(PUBLISHED)
        for variant, (parameters, gmacs) in PUBLISHED.items():
            assert rows[variant]["classifier_parameters"] == parameters
            assert round(rows[variant]["classifier_macs_224x224"] / 1e9, 2) == gmacs
        for variant, gmacs in DENSE.items():
            assert round(rows[variant]["backbone_macs_800x1216"] / 1e9, 2) == gmacs
        assert rows["svt_base"]["channels"] == [96, 192, 384, 768]
        # A dense SVT has no head (768 x 1000 + 1000) and no last norm, but a norm on each of its levels.
        levels = 2 * (96 + 192 + 384 + 768)
        assert rows["svt_base"]["backbone_parameters"] == 56_070_952 - 769_000 - 2 * 768 + levels

    def test_table(self) -> None:
        result = twins("info", "svt_small", "pcpvt_small", "--size", "224x224")
        rows = [line.split() for line in result.out.splitlines()[2:]]
        assert [row[0] for row in rows] == ["svt_small", "pcpvt_small"]
        assert [row[1:3] for row in rows] == [["24.06", "2.93"], ["24.11", "3.81"]]
        assert rows[0][-4:] == ["64", "128", "256", "512"]
        # Without the head (512 x 1000), the dense backbone does about the same at the same size.
        assert [float(row[4]) for row in rows] == pytest.approx([2.93, 3.81], abs=0.02)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["--size", "800"], ["'800'", "HEIGHTxWIDTH"]),
            (["svt_smal"], ["'svt_smal'", "did you mean 'svt_small'?"]),
            (["svt_small", "--size", "16x16"], ["16x16", "32x32"]),
        ],
    )
    def test_errors(self, arguments: list[str], parts: list[str]) -> None:
        assert_error(twins("info", *arguments), *parts)


class TestBenchmark:
    @pytest.mark.parametrize("peer", ["timm", "mmseg"])
    def test_a_line_a_shape(self, peer: str, tmp_path: Path) -> None:
        options = ("--shape", "1x64x64", "--rounds", "1", "--peer", peer, "--json", tmp_path / "seconds.json")
        result = twins("benchmark", "svt_small", *options)
        assert (result.code, result.err) == (0, "")
        (line,) = [line for line in result.out.splitlines() if line.startswith("svt_small")]
        (row,) = json.loads((tmp_path / "seconds.json").read_text())
        ((ours, theirs),) = row[f"ours_and_{peer}_seconds"]
        ratio = f"{theirs / ours:.2f}"
        assert ours > 0 and theirs > 0
        # The median of one round is also its quartiles.
        assert line.split() == ["svt_small", "1x64x64", f"{ours:.3f}", f"{theirs:.3f}", ratio, f"({ratio}–{ratio})"]

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["--shape", "64x64"], "'64x64'"),
            (["svt_tiny", "--shape", "1x64x64"], "'svt_tiny'"),
            (["svt_tiny", "--peer", "mmseg"], "'svt_tiny'"),
        ],
    )
    def test_errors(self, arguments: list[str], part: str) -> None:
        assert_error(twins("benchmark", *arguments), part)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself, but for a limit of detections: a model that has learned nothing yet gives the most of all."""

    def with_few_detections(data: Path, epochs: int) -> dict[str, Any]:
        config = demo_config(data, epochs)
        config["model"]["options"]["box_detections_per_img"] = 10
        return config

    monkeypatch.setattr("twins_dense.frameworks.mmengine.demo.demo_config", with_few_detections)
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


def test_demo_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    assert_error(twins("demo", "--out", tmp_path / "demo"), str(tmp_path / "demo"), "is a file")
    assert (tmp_path / "demo").read_text() == "mine"
