"""`load_model` and the models that `train` makes: everything equals the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import twins
from detection_fixtures import Run, assert_same_detections
from PIL import Image

import twins_dense as td
from twins_dense.errors import TwinsError
from twins_dense.frameworks import open_config
from twins_dense.inference import Classification, Detections, Segmentation
from twins_dense.weights.catalog import CATALOG


def photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("val2017/*")) or sorted(folder.glob("images/validation/*"))


def fields(found: Detections) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.from_numpy(getattr(found, name)) for name in ("boxes", "scores", "labels")})


class TestDetectors:
    def test_equal_to_the_command_line(self, tiny_run: Run, tmp_path: Path) -> None:
        files = photos(tiny_run.data)
        result = twins("predict", tiny_run.checkpoint, *files, "--score", 0.1, "--out", tmp_path / "out")
        assert result.code == 0, result.err
        entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
        for source in (tiny_run.work_dir, tiny_run.checkpoint, (tiny_run.config, tiny_run.checkpoint)):
            model = td.load_model(source)
            assert (model.task, model.classes) == ("detection", ("circle", "rectangle", "triangle"))
            for found, entry, file in zip(model.predict(files, score=0.1), entries, files, strict=True):
                assert isinstance(found, Detections) and found.path == file
                assert found.to_coco() == entry["detections"]
                assert all(set(detection) >= {"segmentation", "category"} for detection in entry["detections"])

    def test_batches_equal_single_images(self, tiny_run: Run) -> None:
        files = photos(tiny_run.data)[:4]
        model = td.load_model(tiny_run.checkpoint)
        for together, file in zip(model.predict(files, score=0.0, batch_size=4), files, strict=True):
            alone = model.predict(file, score=0.0)
            assert_same_detections(fields(together), fields(alone), limit=10)

    def test_evaluate_equals_eval(self, tiny_run: Run, tmp_path: Path) -> None:
        arguments = ("eval", tiny_run.config, tiny_run.checkpoint, "--work-dir", tmp_path / "eval")
        assert twins(*arguments).code == 0
        expected = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
        model = td.load_model(tiny_run.checkpoint)
        assert model.evaluate(work_dir=tmp_path / "mine") == expected and (tmp_path / "mine" / "metrics.json").exists()

    def test_evaluate_on_a_folder(self, tiny_run: Run, tmp_path: Path) -> None:
        """The folder may lie elsewhere; its classes must be those of the model."""
        model = td.load_model(tiny_run.checkpoint)
        data = tmp_path / "moved"
        shutil.copytree(tiny_run.data, data)
        shutil.move(data / "val2017" / (name := sorted(os.listdir(data / "val2017"))[0]), data / name)
        with pytest.raises(TwinsError, match=name):
            model.evaluate(data)
        shutil.move(data / name, data / "val2017")
        assert model.evaluate(data) == model.evaluate(tiny_run.data)
        for file in (data / "annotations").iterdir():
            file.write_text(file.read_text().replace('"triangle"', '"tetragon"'))
        with pytest.raises(TwinsError, match="different categories") as caught:
            model.evaluate(data)
        assert "tetragon" in str(caught.value) and "\n" not in str(caught.value)

    def test_views_and_tiles_run(self, tiny_run: Run) -> None:
        model = td.load_model(tiny_run.checkpoint)
        image = np.asarray(Image.open(photos(tiny_run.data)[0]).convert("RGB").resize((150, 100)))
        before = model.predict(image, score=0.0)
        for options in ({"tta": "flip,0.5"}, {"tile": 64, "batch_size": 2}, {"tile": 64, "tta": "flip"}):
            found = model.predict(image, score=0.0, **options)
            assert len(found) > 0 and found.masks is not None and found.masks.shape[1:] == (100, 150)
            assert (found.boxes >= 0).all() and (found.boxes <= [150, 100, 150, 100]).all()
        after = model.predict(image, score=0.0)  # the scales of the views have left no trace
        assert (before.boxes == after.boxes).all()

    def test_bfloat16(self, tiny_run: Run) -> None:
        file = photos(tiny_run.data)[0]
        exact, rounded = (td.load_model(tiny_run.checkpoint, precision=p) for p in ("float32", "bfloat16"))
        first, second = exact.predict(file, score=0.0), rounded.predict(file, score=0.0)
        assert len(second) > 0 and second.boxes.dtype == np.float32
        assert not np.array_equal(first.scores, second.scores)
        np.testing.assert_allclose(second.scores.max(), first.scores.max(), rtol=0.1)

    def test_overrides(self, tiny_run: Run) -> None:
        file = photos(tiny_run.data)[0]
        for source in (tiny_run.checkpoint, (tiny_run.config, tiny_run.checkpoint)):
            small = td.load_model(source, overrides=["model.options.box_detections_per_img=2"])
            assert len(small.predict(file, score=0.0)) == 2
            with pytest.raises(TwinsError, match="min_sise"):
                td.load_model(source, overrides=["model.min_sise=64"])


class TestSegmentors:
    def test_equal_to_the_command_line(self, segmentation_run: Run, tmp_path: Path) -> None:
        files = photos(segmentation_run.data)
        assert len(files) == 5
        result = twins("predict", segmentation_run.work_dir, *files, "--out", tmp_path / "out")
        assert result.code == 0, result.err
        entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
        for source in (segmentation_run.checkpoint, (segmentation_run.config, segmentation_run.checkpoint)):
            model = td.load_model(source)
            assert (model.task, model.classes) == ("segmentation", ("ground", "disc", "bar"))
            for found, entry in zip(model.predict(files, batch_size=2), entries, strict=True):
                assert isinstance(found, Segmentation)
                assert (found.labels == np.asarray(Image.open(entry["labels"]))).all()
                assert found.shares == entry["classes"]
        assert (tmp_path / "out" / "legend.png").is_file()

    def test_batches_equal_single_images(self, segmentation_run: Run) -> None:
        files = photos(segmentation_run.data)[:4]
        model = td.load_model(segmentation_run.checkpoint)
        for together, file in zip(model.predict(files, batch_size=4, confidence=True), files, strict=True):
            alone = model.predict(file, confidence=True)
            np.testing.assert_allclose(together.confidence, alone.confidence, atol=1e-4)
            assert (together.labels == alone.labels).mean() > 0.999
            assert alone.confidence.dtype == np.float32 and (alone.confidence >= 1 / 3 - 1e-4).all()

    def test_evaluate_equals_eval(self, segmentation_run: Run, tmp_path: Path) -> None:
        arguments = ("eval", segmentation_run.config, segmentation_run.checkpoint, "--work-dir", tmp_path / "eval")
        assert twins(*arguments).code == 0
        expected = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
        assert td.load_model(segmentation_run.checkpoint).evaluate() == expected

    def test_views_and_tiles_run(self, segmentation_run: Run) -> None:
        model = td.load_model(segmentation_run.checkpoint)
        image = np.asarray(Image.open(photos(segmentation_run.data)[0]).resize((150, 100)))
        for options in ({"tta": "flip,0.5"}, {"tile": 64, "batch_size": 2}, {"tile": 64, "tta": "flip"}):
            found = model.predict(image, confidence=True, **options)
            assert found.labels.shape == found.confidence.shape == (100, 150)
            assert {*np.unique(found.labels).tolist()} <= {1, 2, 3}


class TestSources:
    def test_the_best_checkpoint_of_a_run(self, tiny_run: Run, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(tiny_run.work_dir, run, ignore=shutil.ignore_patterns("best_*"))
        names = [repr(td.load_model(run))]
        for number, name in enumerate(("best_coco_bbox_AP_epoch_1.pth", "best_coco_bbox_AP_epoch_2.pth")):
            shutil.copy(tiny_run.checkpoint, run / name)
            os.utime(run / name, (1e9 + number, 1e9 + number))
            names.append(repr(td.load_model(str(run))))
        for name, expected in zip(names, ("epoch_2.pth", "best_coco_bbox_AP_epoch_1", "AP_epoch_2.pth"), strict=True):
            assert expected in name

    @pytest.mark.parametrize(
        ("source", "parts"),
        [
            ("missing", ("'missing'", "no such work directory")),
            ("svt_smal.in1k-mmpretrain", ("svt_smal", "svt_small.in1k-mmpretrain")),
            (("missing.py", "epoch_1.pth"), ("'missing.py'", "no such file")),
            (("torchvision/mask_rcnn_svt_small_1x", "missing.pth"), ("'missing.pth'", "no such file")),
            ("empty", ("'empty'", "no checkpoint")),
            ("text.pth", ("'text.pth'",)),
            ("tensors.pth", ("'tensors.pth'", "does not contain its config")),
        ],
    )
    def test_bad_sources(
        self, source: Any, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("empty").mkdir()
        Path("text.pth").write_text("no checkpoint")
        torch.save([torch.zeros(3)], "tensors.pth")
        with pytest.raises(TwinsError) as caught:
            td.load_model(source)
        assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ({"device": "cuda:99"}, "cuda:99"),
            ({"device": "abacus"}, "abacus"),
            ({"precision": "float16"}, "float16"),
        ],
    )
    def test_bad_options(self, tiny_run: Run, options: dict[str, Any], part: str) -> None:
        with pytest.raises(TwinsError, match=part) as caught:
            td.load_model(tiny_run.checkpoint, **options)
        assert "\n" not in str(caught.value)


class TestPublished:
    """Files with random weights stand in for the published ones."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TWINS_DENSE_HOME", str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()

    def test_a_classifier(self, tmp_path: Path) -> None:
        spec = CATALOG["svt_small.in1k-official"]
        net = td.create_classifier("svt_small").eval()
        torch.save(net.state_dict(), spec.path)
        model = td.load_model(spec.name)
        assert model.task == "classification" and len(model.classes) == 1000 and model.classes[0] == "tench"
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (240, 300, 3), dtype=np.uint8) for _ in range(2)]
        from twins_dense.imagenet.transforms import image_transform

        with torch.inference_mode():
            batch = torch.stack([image_transform(spec.preprocessing)(Image.fromarray(image)) for image in images])
            expected = net(batch).softmax(dim=1)
        for found, probabilities in zip(model.predict(images, batch_size=2, top=3), expected, strict=True):
            assert isinstance(found, Classification)
            best = probabilities.topk(3)
            np.testing.assert_allclose(found.probabilities, best.values, rtol=1e-4)
            assert found.names == [model.classes[label] for label in found.labels]
            assert len(found.labels) == 3
        for options in ({"tile": 64}, {"tta": "flip"}, {"confidence": True}):
            with pytest.raises(TwinsError):
                model.predict(images, **options)
        with pytest.raises(TwinsError, match="validate"):
            model.evaluate()
        Image.fromarray(images[0]).save(tmp_path / "photo.png")
        result = twins("predict", spec.name, tmp_path / "photo.png", "--out", tmp_path / "out")
        assert result.code == 0, result.err
        (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [row["label"] for row in entry["classes"]] == model.predict(images[0]).labels.tolist()

    def test_a_segmentor(self) -> None:
        spec = CATALOG["svt_small.ade20k_fpn-mmseg"]
        _, config = open_config("mmseg/semantic_fpn_svt_small_80k")
        from mmengine.registry import MODELS

        from twins_dense.frameworks.mmengine.runner import _prepare

        _prepare(config)
        torch.save({"meta": {}, "state_dict": MODELS.build(config.model).state_dict()}, spec.path)
        model = td.load_model(spec.name)
        assert model.task == "segmentation" and len(model.classes) == 150 and model.classes[0] == "wall"
        found = model.predict(np.zeros((32, 32, 3), dtype=np.uint8))
        assert found.labels.shape == (32, 32) and 1 <= found.labels.min() <= found.labels.max() <= 150

    def test_every_published_segmentor_has_a_config(self) -> None:
        from twins_dense.frameworks.shipped_configs import list_configs
        from twins_dense.inference.load import _config_of

        specs = [spec for spec in CATALOG.values() if spec.task == "segmentation"]
        assert len({_config_of(spec) for spec in specs} & {*list_configs()}) == len(specs) == 12
