"""Best checkpoint, averaged weights, early stopping, validation losses, scores of classes and sample pictures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import NUM_VAL, SIZE, write_config
from mmengine.config import Config
from PIL import Image
from run_fixtures import one_line_of
from segmentation_fixtures import CLASSES
from segmentation_fixtures import write_config as write_segmentation_config
from torch.nn import functional

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.options import MonitoringOptions

EVERYTHING = MonitoringOptions(ema=True, patience=5, val_loss=True, samples=3)
MASK_METRICS = 24


def detection_config(path: Path, data: Path, options: MonitoringOptions | None, *overrides: str, **more: Any) -> Config:
    config = engine.load_config(write_config(path, data, **more), overrides)
    if options is not None:
        engine.set_monitoring(config, options)
    return config


def hooks_of(config: Config) -> dict[str, Config]:
    hooks = {hook["type"]: hook for hook in config.custom_hooks}
    assert len(hooks) == len(config.custom_hooks)
    return hooks


def records_of(work_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def metrics_of(work_dir: Path) -> dict[str, float]:
    return json.loads((work_dir / "metrics.json").read_text())["metrics"]


class TestSetMonitoring:
    @pytest.fixture
    def config(self, toy_data: Path, tmp_path: Path) -> Config:
        return engine.load_config(write_config(tmp_path / "plain.py", toy_data))

    def test_defaults(self, config: Config) -> None:
        engine.set_monitoring(config, MonitoringOptions())
        checkpoint = config.default_hooks.checkpoint
        assert (checkpoint.save_best, checkpoint.rule) == ("coco/segm_AP", "greater")
        assert {name: hook["num_images"] for name, hook in hooks_of(config).items()} == {"SamplePicturesHook": 4}

    def test_default_for_boxes(self, config: Config) -> None:
        config.val_evaluator.iou_types = ("bbox",)
        engine.set_monitoring(config, MonitoringOptions(samples=0))
        assert config.default_hooks.checkpoint.save_best == "coco/bbox_AP"
        assert hooks_of(config) == {}

    def test_default_for_segmentation(self, label_data: Path, tmp_path: Path) -> None:
        config = engine.load_config(write_segmentation_config(tmp_path / "plain.py", label_data))
        engine.set_monitoring(config, MonitoringOptions())
        assert config.default_hooks.checkpoint.save_best == "mIoU"

    def test_twice_is_once(self, config: Config) -> None:
        """The config that a run dumps can be used again."""
        engine.set_monitoring(config, EVERYTHING)
        before = hooks_of(config)
        engine.set_monitoring(config, EVERYTHING)
        assert hooks_of(config) == before
        assert before.keys() == {
            "EMAHook",
            "ResumableEarlyStoppingHook",
            "SamplePicturesHook",
            "ValidationLossHook",
        }

    def test_the_choice_of_the_config_counts_without_the_option(self, config: Config) -> None:
        config.default_hooks.checkpoint.save_best = "coco/bbox_AR10"
        config.default_hooks.checkpoint.rule = "greater"
        engine.set_monitoring(config, MonitoringOptions(patience=3))
        assert config.default_hooks.checkpoint.save_best == "coco/bbox_AR10"
        assert hooks_of(config)["ResumableEarlyStoppingHook"].monitor == "coco/bbox_AR10"
        engine.set_monitoring(config, MonitoringOptions(best="coco/bbox_AP75"))
        assert config.default_hooks.checkpoint.save_best == "coco/bbox_AP75"

    def test_the_validation_loss_is_better_if_it_is_lower(self, config: Config) -> None:
        engine.set_monitoring(config, MonitoringOptions(best="val/loss", val_loss=True, patience=2))
        assert config.default_hooks.checkpoint.rule == "less"
        assert hooks_of(config)["ResumableEarlyStoppingHook"].rule == "less"

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"best": "segm_AP"}, ("--best 'segm_AP'", "coco/segm_AP", "coco/bbox_AR100")),
            ({"best": "mIoU"}, ("--best 'mIoU'", "coco/segm_AP")),
            ({"best": "val/loss"}, ("--best 'val/loss'", "coco/segm_AP")),
            ({"patience": 0}, ("--patience 0", "1 or more")),
            ({"samples": -1}, ("--samples -1", "0 or more")),
        ],
    )
    def test_bad_options(self, config: Config, options: dict[str, Any], parts: tuple[str, ...]) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.set_monitoring(config, MonitoringOptions(**options))
        one_line_of(caught, *parts)

    @pytest.mark.parametrize(("option", "value"), [("best", "coco/bbox_AP"), ("patience", 3), ("val_loss", True)])
    def test_without_validation_data(self, config: Config, option: str, value: Any) -> None:
        for part in ("dataloader", "evaluator", "cfg"):
            config.pop(f"val_{part}")
        engine.set_monitoring(config, MonitoringOptions())
        assert "save_best" not in config.default_hooks.checkpoint
        with pytest.raises(TwinsError) as caught:
            engine.set_monitoring(config, MonitoringOptions(**{option: value}))
        one_line_of(caught, f"--{option.replace('_', '-')}", "validation data")

    def test_tensorboard(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(TwinsError) as caught:
            engine.set_monitoring(config, MonitoringOptions(tensorboard=True))
        one_line_of(caught, "--tensorboard", "pip install tensorboard")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        for _ in range(2):
            engine.set_monitoring(config, MonitoringOptions(tensorboard=True))
        backends = [backend["type"] for backend in config.visualizer.vis_backends]
        assert backends == ["LocalVisBackend", "TensorboardVisBackend"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The work directory of a detector after 2 epochs with everything."""
    folder = tmp_path_factory.mktemp("monitoring")
    engine.train(detection_config(folder / "everything.py", toy_data, EVERYTHING, epochs=2), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory, label_data: Path) -> tuple[Path, Any]:
    """The work directory and the runner of a segmentor after 8 iterations with two evaluations."""
    folder = tmp_path_factory.mktemp("monitoring_segmentor")
    config = engine.load_config(write_segmentation_config(folder / "everything.py", label_data))
    engine.set_monitoring(config, MonitoringOptions(patience=5, val_loss=True, samples=2))
    return folder / "run", engine.train(config, folder / "run")


class TestDetection:
    def test_the_best_checkpoint_has_the_scores_that_it_is_kept_for(
        self, run: Path, toy_data: Path, tmp_path: Path
    ) -> None:
        """They are those of the averaged weights."""
        (best,) = run.glob("best_coco_segm_AP_epoch_*.pth")
        evaluations = [record for record in records_of(run) if "coco/segm_AP" in record]
        scores = [record["coco/segm_AP"] for record in evaluations]
        assert len(scores) == 2
        epoch = 1 + scores.index(max(scores))
        assert best.stem.endswith(f"_{epoch}")
        config = detection_config(tmp_path / "plain.py", toy_data, None)
        found = engine.evaluate(config, best, tmp_path / "evaluation")
        expected = {name: value for name, value in evaluations[epoch - 1].items() if name in found}
        assert len(expected) == MASK_METRICS + 2 * 2 * 3
        assert found == expected

    def test_averaged_weights(self, run: Path) -> None:
        """The average lies between the newest weights and the initial ones, so it differs from both."""
        checkpoint = torch.load(run / "epoch_2.pth", weights_only=True)
        average, newest = checkpoint["state_dict"], checkpoint["ema_state_dict"]
        assert newest["steps"] == 8
        assert newest.keys() == {"steps", *(f"module.{name}" for name in average)}
        assert any(not torch.equal(value, newest[f"module.{name}"]) for name, value in average.items())

    def test_metrics_file(self, run: Path) -> None:
        content = json.loads((run / "metrics.json").read_text())
        assert (content["epoch"], content["iter"]) == (2, 8)
        last = [record for record in records_of(run) if "coco/segm_AP" in record][-1]
        assert content["metrics"] == {name: value for name, value in last.items() if name not in ("epoch", "iter")}
        losses = {name for name in content["metrics"] if name.startswith("val/")}
        assert losses == {f"val/{name}" for name in content["losses"]}
        assert content["metrics"]["val/loss"] == pytest.approx(
            sum(content["metrics"][name] for name in losses if name != "val/loss"), rel=1e-5
        )

    def test_records(self, run: Path) -> None:
        records = records_of(run)
        assert [record["iter"] for record in records] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
        assert [record["epoch"] for record in records] == [1] * 5 + [2] * 5
        training = [record for record in records if "lr" in record]
        assert len(training) == 8
        for record in training:
            assert {"lr", "loss", "loss_mask", "time", "data_time"} <= record.keys()

    def test_sample_pictures(self, run: Path) -> None:
        folders = sorted((run / "samples").iterdir())
        assert [folder.name for folder in folders] == ["epoch_1", "epoch_2"]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert len(names[0]) == 3 < NUM_VAL and names[0] == names[1]
        with Image.open(folders[0] / names[0][0]) as picture:
            width, height = picture.size
        assert height % SIZE == 0  # small images are enlarged by a whole number
        assert 2 * height < width < 3 * height

    def test_the_validation_loss_changes_nothing_else(self, toy_data: Path, tmp_path: Path) -> None:
        states = []
        for val_loss in (False, True):
            name = f"loss_{val_loss}"
            options = MonitoringOptions(val_loss=val_loss, samples=0)
            # Randomness that is not seeded before each iteration would show, too.
            config = detection_config(tmp_path / f"{name}.py", toy_data, options, epochs=2)
            engine.train(config, tmp_path / name)
            states.append(torch.load(tmp_path / name / "epoch_2.pth", weights_only=True)["state_dict"])
            metrics = metrics_of(tmp_path / name)
            assert ("val/loss" in metrics) is val_loss
            states[-1]["metrics"] = torch.tensor([metrics["coco/segm_AP"], metrics["coco/bbox_AP"]])
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_retinanet(self, toy_data: Path, tmp_path: Path) -> None:
        more = "train_dataloader['dataset']['with_masks'] = False\nval_evaluator['iou_types'] = ('bbox',)\n"
        config = detection_config(tmp_path / "boxes.py", toy_data, EVERYTHING, kind="TwinsRetinaNet", more=more)
        engine.train(config, tmp_path / "run")
        metrics = metrics_of(tmp_path / "run")
        assert {name for name in metrics if name.startswith("val/")} == {
            "val/loss",
            "val/loss_classification",
            "val/loss_bbox_regression",
        }
        assert [path.name for path in (tmp_path / "run").glob("best_*.pth")] == ["best_coco_bbox_AP_epoch_1.pth"]


class TestEarlyStopping:
    def test_stops_and_stays_stopped(self, toy_data: Path, tmp_path: Path) -> None:
        """Without learning, the second evaluation is the first that is no better, and the third is the second."""
        options = MonitoringOptions(patience=2, samples=0)
        overrides = ["optim_wrapper.optimizer.lr=0.0", "default_hooks.checkpoint.interval=2"]
        config = detection_config(tmp_path / "idle.py", toy_data, options, *overrides, epochs=5)
        runner = engine.train(config, tmp_path / "run")
        assert (runner.epoch, runner.iter) == (3, 12)
        names = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
        assert names == ["best_coco_segm_AP_epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]
        before = (tmp_path / "run" / "epoch_3.pth").read_bytes()
        config = detection_config(tmp_path / "idle.py", toy_data, options, *overrides, epochs=5)
        runner = engine.train(config, tmp_path / "run", resume=True)
        assert (runner.epoch, runner.iter) == (3, 12)
        assert (tmp_path / "run" / "epoch_3.pth").read_bytes() == before

    def test_more_patience_goes_on(self, toy_data: Path, tmp_path: Path) -> None:
        epochs = []
        for patience in (1, 2):
            options = MonitoringOptions(patience=patience, samples=0)
            config = detection_config(
                tmp_path / "idle.py", toy_data, options, "optim_wrapper.optimizer.lr=0.0", epochs=5
            )
            epochs.append(engine.train(config, tmp_path / "run", resume=patience == 2).epoch)
        assert epochs == [2, 3]


class TestSegmentation:
    def test_files(self, segmentor: tuple[Path, Any]) -> None:
        work_dir, _ = segmentor
        assert len(list(work_dir.glob("best_mIoU_iter_*.pth"))) == 1
        assert sorted(path.name for path in (work_dir / "samples").iterdir()) == ["iter_4", "iter_8"]
        assert len(list((work_dir / "samples" / "iter_8").iterdir())) == 2
        assert [record["iter"] for record in records_of(work_dir)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]

    def test_scores_of_classes(self, segmentor: tuple[Path, Any]) -> None:
        metrics = metrics_of(segmentor[0])
        for kind in ("IoU", "Acc"):
            scores = [metrics[f"{kind}/{name}"] for name in CLASSES]
            assert sum(scores) / len(scores) == pytest.approx(metrics[f"m{kind}"], abs=1e-4)

    def test_validation_loss(self, segmentor: tuple[Path, Any]) -> None:
        """It is the mean cross-entropy over all pixels, of which those to ignore count as 0."""
        work_dir, runner = segmentor
        model, losses = runner.model.eval(), []
        for batch in runner.val_dataloader:
            data = model.data_preprocessor(batch, False)
            label = data["data_samples"][0].gt_sem_seg.data
            with torch.no_grad():
                logits = model(**data, mode="tensor")
            logits = functional.interpolate(logits, size=label.shape[1:], mode="bilinear", align_corners=False)
            loss = functional.cross_entropy(logits, label, ignore_index=255, reduction="none")
            losses.append(loss.mean().item())
        assert metrics_of(work_dir)["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)

    def test_the_validation_loss_changes_nothing_else(
        self, segmentor: tuple[Path, Any], label_data: Path, tmp_path: Path
    ) -> None:
        config = engine.load_config(write_segmentation_config(tmp_path / "plain.py", label_data))
        engine.train(config, tmp_path / "run")
        states = [torch.load(folder / "iter_8.pth", weights_only=True) for folder in (segmentor[0], tmp_path / "run")]
        ours, theirs = (state["state_dict"] for state in states)
        assert any("running_mean" in name for name in ours)
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
