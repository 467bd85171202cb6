"""detectron2 on the command line (train, eval and predict) and with detectron2's own script."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from d2_fixtures import (
    CONFIGS,
    MARKS,
    clean_detectron2,  # noqa: F401  (a fixture)
    engine,
    read_metrics,
    write_lazy,
)
from detection_fixtures import ROOT, TINY_SVT, assert_same_detections, run_python
from detectron2.config import LazyConfig, instantiate
from PIL import Image
from pycocotools import mask as mask_utils

import twins_dense as td
from twins_dense.inference import Detections

pytestmark = MARKS
# A checkout of detectron2, for scripts that its package does not contain.
D2_SOURCE = Path(os.environ.get("TWINS_DENSE_TEST_DETECTRON2", "detectron2-checkout"))
NO_D2_SOURCE = "needs detectron2's tools: set TWINS_DENSE_TEST_DETECTRON2 to a folder with a checkout of it"
SCORES = [f"coco/{kind}_AP{size}" for kind in ("bbox", "segm") for size in ("", "50", "75", "s", "m", "l")]
CATEGORIES = {1: "circle", 2: "rectangle", 5: "triangle"}


@dataclass(frozen=True)
class Run:
    """A finished run of the command line: config, work directory, last checkpoint and output."""

    config: Path
    work_dir: Path
    checkpoint: Path
    output: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Run:
    """A tiny Mask R-CNN after 6 iterations, evaluated every 3 iterations. Tests must not change it."""
    root = tmp_path_factory.mktemp("run")
    more = "train.update(max_iter=6, eval_period=3, monitoring=dict(tensorboard=True))\ntrain.checkpointer.period = 3\n"
    config = write_lazy(root / "tiny.py", toy_data, schedule="3x", more=more)
    options = ("--work-dir", str(root / "work"), "--no-report")
    result = run_python("-m", "twins_dense", "train", str(config), *options, cwd=root)
    assert result.returncode == 0, result.stderr
    return Run(config, root / "work", root / "work" / "model_final.pth", result.stdout)


class TestTrain:
    def test_what_it_leaves(self, run: Run) -> None:
        names = {re.sub(r"tfevents.*", "tfevents", path.name) for path in run.work_dir.iterdir()}
        checkpoints = {f"model_{name}.pth" for name in ("0000002", "0000005", "best", "final")} | {"last_checkpoint"}
        assert names >= checkpoints | {"config.yaml", "log.txt", "metrics.json", "metrics.jsonl", "events.out.tfevents"}
        assert list(read_metrics(run.work_dir)) == list(range(6))
        for path in run.work_dir.glob("*.pth"):
            content = torch.load(path, weights_only=True)
            assert content["dataset_meta"] == {"classes": [*CATEGORIES.values()], "category_ids": [*CATEGORIES]}
        assert run.output.splitlines()[-1].startswith(f"done: {run.work_dir} ")

    def test_what_it_says(self, run: Run) -> None:
        log = (run.work_dir / "log.txt").read_text()
        for text in (log, run.output):
            assert "Learning rate scaled with the batch size: 0.001 x 2 / 16 = 0.000125" in text
            assert "6 iterations of 2 images are 1.50 epochs of 8 images" in text
            assert "No GPU: running on the CPU" in text
            assert "No GPU: training in float32 instead of mixed precision" in text
        rates = [values["lr"] for (values,) in read_metrics(run.work_dir).values()]
        assert rates[0] == pytest.approx(0.000125 * 0.001)

    def test_the_written_config_is_what_was_run(self, run: Run) -> None:
        """detectron2 can read config.yaml."""
        config = LazyConfig.load(str(run.work_dir / "config.yaml"))
        assert config.train.output_dir == str(run.work_dir) and config.train.max_iter == 6
        assert config.model.backbone.bottom_up.net.variant["name"] == TINY_SVT["name"]

    def test_scores_of_the_run_are_in_its_metrics(self, run: Run) -> None:
        lines = [json.loads(line) for line in (run.work_dir / "metrics.jsonl").read_text().splitlines()]
        assert sum("segm/AP" in line for line in lines) == 2
        assert run.output.count("evaluation after iteration") == 2 == run.output.count("\nbox ")
        assert (run.work_dir / "log.txt").read_text().count("Evaluation results for bbox") == 2

    def test_the_rate_can_be_kept(self, tmp_path: Path, toy_data: Path) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data, "retinanet")
        options = ("train.max_iter=1", "train.auto_scale_lr.enabled=False", "lr_multiplier.warmup_iters=0")
        result = twins("train", config, "--work-dir", tmp_path / "run", *options)
        assert result.code == 0, result.err
        assert "Learning rate scaled" not in result.out
        assert read_metrics(tmp_path / "run")[0][0]["lr"] == 1e-3


class TestEval:
    def test_scores_are_those_of_training(self, run: Run, tmp_path: Path) -> None:
        options = ("eval", str(run.config), str(run.checkpoint), "--work-dir", str(tmp_path / "out"))
        result = run_python("-m", "twins_dense", *options)
        assert result.returncode == 0, result.stderr
        content = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert content["dataset"] == "toy_test" and content["checkpoint"] == str(run.checkpoint)
        found = content["metrics"]
        assert set(found) == {
            *SCORES,
            *(f"coco/{kind}_AP-{name}" for kind in ("bbox", "segm") for name in CATEGORIES.values()),
        }
        last = [json.loads(line) for line in (run.work_dir / "metrics.jsonl").read_text().splitlines()][-1]
        for name, value in found.items():
            expected = last[name.removeprefix("coco/").replace("_", "/", 1)] / 100
            if value is None:
                assert np.isnan(expected)
            else:
                assert value == pytest.approx(expected, abs=1e-6)
        assert found["coco/bbox_AP"] > 0  # otherwise, equal scores would prove little
        for title, kind in (("box", "bbox"), ("mask", "segm")):
            (row,) = re.findall(rf"^{title} .*$", result.stdout, re.MULTILINE)
            values = [found[f"coco/{kind}_{name}"] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
            assert row.split()[1:] == ["–" if value is None else f"{value:.3f}" for value in values]
        assert result.stdout.splitlines()[-1].startswith(str(tmp_path / "out" / "metrics.json"))

    def test_imagenet_weights_are_not_asked_for(self, run: Run, tmp_path: Path) -> None:
        """They are not needed, because a checkpoint of the whole model is loaded."""
        weights = "model.backbone.bottom_up.net.weights=long/gone.pth"
        result = twins("eval", run.config, run.checkpoint, "--work-dir", tmp_path / "out", weights)
        assert result.code == 0, result.err

    def test_another_data_set(self, run: Run, tmp_path: Path, toy_data: Path) -> None:
        """The data set is given by its paths, in a custom folder."""
        shutil.copytree(toy_data, tmp_path / "mine")
        (tmp_path / "mine" / "val2017").rename(tmp_path / "mine" / "photos")
        (tmp_path / "mine" / "annotations" / "instances_val2017.json").rename(tmp_path / "mine" / "labels.json")
        options = ("dataloader.test.dataset.ann_file=labels.json", "dataloader.test.dataset.image_dir=photos")
        options += ("--data-root", tmp_path / "mine", "dataloader.test.dataset.name=mine")
        result = twins("eval", run.config, run.checkpoint, "--work-dir", tmp_path / "out", *options)
        assert result.code == 0, result.err
        content = json.loads((tmp_path / "out" / "metrics.json").read_text())
        last = [json.loads(line) for line in (run.work_dir / "metrics.jsonl").read_text().splitlines()][-1]
        assert content["dataset"] == "mine"
        assert content["metrics"]["coco/segm_AP"] == pytest.approx(last["segm/AP"] / 100, abs=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[int, int]]:
    """Write images of several sizes and kinds, and return their upright widths and heights."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    noise(71, 97, 3).save(root / "colour.png")
    noise(61, 83).save(root / "gray.png")
    noise(40, 200, 3).save(root / "wide.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be rotated by 90 degrees
    noise(64, 89, 3).save(root / "turned.jpg", exif=turned)
    sizes = {"colour.png": (97, 71), "gray.png": (83, 61), "turned.jpg": (64, 89), "wide.jpg": (200, 40)}
    return {root / name: size for name, size in sizes.items()}


class TestPredict:
    def test_boxes_masks_and_names(self, run: Run, photos: dict[Path, tuple[int, int]], tmp_path: Path) -> None:
        out = tmp_path / "out"
        options = (
            "predict",
            str(run.config),
            str(run.checkpoint),
            *map(str, photos),
            "--out",
            str(out),
            "--score",
            "0",
        )
        result = run_python("-m", "twins_dense", *options)
        assert result.returncode == 0, result.stderr
        entries = json.loads((out / "predictions.json").read_text())
        assert [entry["file"] for entry in entries] == [str(path) for path in photos]
        count = 0
        for entry, (width, height) in zip(entries, photos.values(), strict=True):
            assert (entry["width"], entry["height"]) == (width, height)
            with Image.open(entry["picture"]) as picture:
                assert picture.size == (width, height)
            for detection in entry["detections"]:
                count += 1
                assert set(detection) == {"category_id", "category", "bbox", "score", "segmentation"}
                assert CATEGORIES[detection["category_id"]] == detection["category"]
                x, y, w, h = detection["bbox"]
                assert 0 <= x < x + w <= width + 1e-3 and 0 <= y < y + h <= height + 1e-3
                assert 0 <= detection["score"] <= 1
                assert detection["segmentation"]["size"] == [height, width]
                assert 0 <= mask_utils.area(detection["segmentation"]) <= width * height
        assert count > len(photos)
        assert f"{count} instances in {len(photos)} images" in result.stdout

    def test_score(self, run: Run, photos: dict[Path, tuple[int, int]], tmp_path: Path) -> None:
        photo = next(iter(photos))

        def scores(lowest: float) -> list[float]:
            out = tmp_path / str(lowest)
            result = twins("predict", run.config, run.checkpoint, photo, "--out", out, "--score", lowest)
            assert result.code == 0, result.err
            (entry,) = json.loads((out / "predictions.json").read_text())
            return [detection["score"] for detection in entry["detections"]]

        every = sorted(scores(0.0))
        middle = (every[len(every) // 2 - 1] + every[len(every) // 2]) / 2
        assert sorted(scores(middle)) == pytest.approx(every[len(every) // 2 :])
        assert scores(1.0) == [] and len(every) > 4
        plain = np.asarray(Image.open(photo), dtype=float)
        differences = [
            np.abs(np.asarray(Image.open(next((tmp_path / name).glob("*.jpg"))), dtype=float) - plain).mean()
            for name in ("1.0", "0.0")
        ]
        assert differences[0] < differences[1]  # a picture without detections is the image itself

    def test_detections_are_those_of_evaluation(self, run: Run, toy_data: Path) -> None:
        """The predictor resizes images and scales detections back like detectron2's own test loader and evaluator."""
        config = engine.load_config(run.config, ["dataloader.test.mapper.augmentations.0.short_edge_length=90"])
        predictor = engine.predictor(config, run.checkpoint, torch.device("cpu"))
        predictor([np.zeros((64, 64, 3), np.uint8)], score=0.0)  # sets the threshold of the model
        loader = instantiate(config.dataloader.test)
        for (entry,) in islice(loader, 2):
            assert tuple(entry["image"].shape) == (3, 90, 90) and (entry["height"], entry["width"]) == (64, 64)
            with torch.inference_mode():
                (expected,) = predictor.model([entry])
            (result,) = predictor([np.asarray(Image.open(entry["file_name"]).convert("RGB"))], score=0.0)
            detections = Detections(np.zeros((64, 64, 3)), result, predictor.classes, predictor.category_ids).to_coco()
            boxes = expected["instances"].pred_boxes.tensor.clone()
            boxes[:, 2:] -= boxes[:, :2]
            names = {"boxes": "bbox", "labels": "category_id", "scores": "score"}
            found = SimpleNamespace(
                **{name: torch.tensor([detection[key] for detection in detections]) for name, key in names.items()}
            )
            instances = expected["instances"]
            labels = torch.tensor([*CATEGORIES])[instances.pred_classes]
            assert_same_detections(
                found,
                SimpleNamespace(boxes=boxes, labels=labels, scores=instances.scores),
                limit=100,
                box_atol=1e-2,
            )

    def test_retinanet_has_no_masks(self, tmp_path: Path, toy_data: Path, photos: dict[Path, tuple[int, int]]) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data, "retinanet")
        assert twins("train", config, "--work-dir", tmp_path / "run", "train.max_iter=1").code == 0
        out = tmp_path / "out"
        checkpoint = tmp_path / "run" / "model_final.pth"
        result = twins("predict", config, checkpoint, *photos, "--out", out, "--score", 0)
        assert result.code == 0, result.err
        entries = json.loads((out / "predictions.json").read_text())
        found = [detection for entry in entries for detection in entry["detections"]]
        assert found and all(set(detection) == {"category_id", "category", "bbox", "score"} for detection in found)


class TestYaml:
    """Use a real svt_small with small heads, because YAML files support only the published variants."""

    SMALL = (
        "DATASETS.TRAIN=('coco_2017_train',)",
        "MODEL.ROI_HEADS.NUM_CLASSES=3",
        "MODEL.FPN.OUT_CHANNELS=32",
        "MODEL.ROI_BOX_HEAD.FC_DIM=32",
        "MODEL.ROI_MASK_HEAD.CONV_DIM=32",
        "INPUT.MIN_SIZE_TRAIN=(64,)",
        "INPUT.MIN_SIZE_TEST=64",
        "DATALOADER.NUM_WORKERS=0",
        "SOLVER.IMS_PER_BATCH=2",
        "SOLVER.MAX_ITER=1",
        "SOLVER.STEPS=()",
        "TEST.EVAL_PERIOD=0",
    )

    def test_train_eval_and_predict(self, tmp_path: Path, toy_data: Path, photos: dict[Path, tuple[int, int]]) -> None:
        weights = tmp_path / "imagenet.pth"
        torch.save(td.create_classifier("svt_small").state_dict(), weights)
        config = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
        data = ("--data-root", toy_data)
        work_dir = tmp_path / "run"
        result = twins("train", config, "--work-dir", work_dir, *data, *self.SMALL, f"MODEL.TWINS.WEIGHTS={weights}")
        assert result.code == 0, result.err
        assert "Backbone weights" in result.out and str(weights) in result.out
        checkpoint = work_dir / "model_final.pth"
        # The checkpoint contains the backbone weights, so an override with their file is allowed, but not needed.
        weights.unlink()
        options = (*self.SMALL, f"MODEL.TWINS.WEIGHTS={weights}")
        result = twins("eval", config, checkpoint, "--work-dir", tmp_path / "eval", *data, *options)
        assert result.code == 0, result.err
        metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
        assert set(SCORES) <= set(metrics)
        found = td.load_model((config, checkpoint), overrides=self.SMALL).predict(next(iter(photos)), score=0.0)
        assert found.draw().size == (97, 71) and isinstance(found, Detections)
        assert len(found) > 0 and {*found.names} <= {*CATEGORIES.values()}
        alone = td.load_model(checkpoint).predict(next(iter(photos)), score=0.0)  # with the config inside
        assert alone.to_coco() == found.to_coco()

    def test_hints_have_its_names(self, tmp_path: Path, toy_data: Path) -> None:
        options = [option for option in self.SMALL if "NUM_CLASSES" not in option]
        config = CONFIGS / "mask_rcnn_svt_small_1x.yaml"
        result = twins("train", config, "--work-dir", tmp_path / "run", "--data-root", toy_data, *options)
        assert_error(result, "3 categories", "80 classes", "MODEL.ROI_HEADS.NUM_CLASSES=3")


# detectron2's own script


@pytest.fixture
def data_below_datasets(tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "coco").symlink_to(toy_data)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


@pytest.mark.skipif(not D2_SOURCE.is_dir(), reason=NO_D2_SOURCE)
@pytest.mark.usefixtures("data_below_datasets")
class TestDetectron2sOwnScript:
    """Run detectron2's tools/lazyconfig_train_net.py with one of our configs, unchanged."""

    VARIANT = ",".join(f"{name}:{list(v) if isinstance(v, tuple) else v}" for name, v in TINY_SVT.items())
    SMALL = (
        f"model.backbone.bottom_up.net.variant={{{VARIANT}}}",
        "model.roi_heads.num_classes=3",
        "model.roi_heads.box_head.fc_dims=[32,1024]",
        "model.roi_heads.box_predictor.test_score_thresh=0.0",
        "model.proposal_generator.post_nms_topk=[50,50]",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "train.device=cpu",
    )

    def script(self, *options: str) -> str:
        path = D2_SOURCE / "tools" / "lazyconfig_train_net.py"
        config = CONFIGS / "mask_rcnn_svt_small_1x.py"
        result = run_python(str(path), "--config-file", str(config), *options, *self.SMALL, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_train_and_evaluate(self, tmp_path: Path, toy_data: Path) -> None:
        more = [
            "train.max_iter=2",
            "train.eval_period=1",
            "train.log_period=1",
            f"train.output_dir={tmp_path / 'work'}",
        ]
        self.script(*more)
        losses = read_metrics(tmp_path / "work", "metrics.json")  # detectron2's own name for the file with JSON lines
        assert list(losses) == [0, 1] and np.isfinite([values["total_loss"] for (values,) in losses.values()]).all()
        lines = [json.loads(line) for line in (tmp_path / "work" / "metrics.json").read_text().splitlines()]
        trained = [line["bbox/AP"] for line in lines if "bbox/AP" in line]
        assert len(trained) == 2

        checkpoint = tmp_path / "work" / "model_final.pth"
        more = [f"train.init_checkpoint={checkpoint}", f"train.output_dir={tmp_path / 'eval'}"]
        output = self.script("--eval-only", *more)
        found = re.findall(r"copypaste: (-?\d+\.\d{4}),", output)
        assert len(found) == 2  # boxes, masks
        assert float(found[0]) == pytest.approx(trained[-1], abs=1e-3)

        # Its checkpoint can be used like one of ours.
        result = twins(
            "eval",
            CONFIGS / "mask_rcnn_svt_small_1x.py",
            checkpoint,
            "--data-root",
            toy_data,
            "--work-dir",
            tmp_path / "ours",
            *self.SMALL,
        )
        assert result.code == 0, result.err
        metrics = json.loads((tmp_path / "ours" / "metrics.json").read_text())["metrics"]
        ours = [metrics["coco/bbox_AP"], metrics["coco/segm_AP"]]
        assert ours == pytest.approx([float(value) / 100 for value in found], abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [(), ("--amp",)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_on_a_gpu(head: str, amp: tuple[str, ...], tmp_path: Path, toy_data: Path) -> None:
    config = write_lazy(tmp_path / "tiny.py", toy_data, head, more="train.update(max_iter=4, eval_period=4)\n")
    result = twins("train", config, "--work-dir", tmp_path / "run", *amp)
    assert result.code == 0, result.err
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    result = twins("eval", config, tmp_path / "run" / "model_final.pth", "--work-dir", tmp_path / "eval")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
    assert found["coco/bbox_AP"] == pytest.approx(last["bbox/AP"] / 100, abs=0.001)
