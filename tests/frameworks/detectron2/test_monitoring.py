"""Best checkpoint, averaged weights, early stopping, validation losses and sample pictures of detectron2 runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, snapshot, twins
from d2_fixtures import MARKS, clean_detectron2, engine, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import NUM_VAL
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils.events import EventStorage, get_event_storage
from PIL import Image
from torch import nn

from twins_dense.errors import TwinsError
from twins_dense.frameworks.detectron2.averaging import WeightAverage
from twins_dense.frameworks.detectron2.monitoring import Monitor, choose_best, monitoring_of
from twins_dense.frameworks.detectron2.validation import Validation, mean_losses
from twins_dense.frameworks.options import MonitoringOptions

pytestmark = MARKS
CLASSES = ["circle", "rectangle", "triangle"]


def evaluator_of(kind: type) -> Any:
    return kind.__new__(kind)  # only its type matters


def model_of(*, mask_on: bool) -> Any:
    return SimpleNamespace(roi_heads=SimpleNamespace(mask_on=mask_on))


class TestSettings:
    @pytest.fixture
    def config(self, tmp_path: Path, toy_data: Path) -> Any:
        return engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data, more="train.eval_period = 3\n"))

    def test_defaults(self, config: Any) -> None:
        assert monitoring_of(config) == MonitoringOptions()
        assert monitoring_of(config).samples == 4 and not monitoring_of(config).ema

    def test_options_are_stored_in_the_config(self, config: Any) -> None:
        options = MonitoringOptions("coco/bbox_AP50", ema=True, patience=3, tensorboard=True, val_loss=True, samples=2)
        engine.set_monitoring(config, options)
        assert monitoring_of(config) == options
        engine.set_monitoring(config, MonitoringOptions())  # options that are not given change nothing
        assert monitoring_of(config) == options

    @pytest.mark.parametrize(
        "option",
        [
            "patience=0",
            "patience=1.5",
            "patience=soon",
            "samples=-1",
            "samples=true",
            "ema=1",
            "best=3",
            "val_loss=maybe",
        ],
    )
    def test_bad_values(self, tmp_path: Path, toy_data: Path, option: str) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data, more="train.eval_period = 3\n")
        result = twins("train", config, "--work-dir", tmp_path / "run", f"train.monitoring.{option}")
        assert_error(result, f"train.monitoring.{option.partition('=')[0]}=", "choose")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("option", ["best=coco/bbox_AP", "patience=2", "val_loss=true"])
    def test_they_need_evaluations(self, tmp_path: Path, toy_data: Path, option: str) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data)
        result = twins("train", config, "--work-dir", tmp_path / "run", f"train.monitoring.{option}")
        assert_error(result, "--" + option.partition("=")[0].replace("_", "-"), "train.eval_period", "is 0")


class TestBestMetric:
    def test_default(self) -> None:
        coco, options = evaluator_of(COCOEvaluator), MonitoringOptions()
        assert choose_best(options, model_of(mask_on=True), coco, CLASSES) == "coco/segm_AP"
        assert choose_best(options, model_of(mask_on=False), coco, CLASSES) == "coco/bbox_AP"
        assert choose_best(options, SimpleNamespace(), coco, CLASSES) == "coco/bbox_AP"
        assert choose_best(options, model_of(mask_on=True), evaluator_of(DatasetEvaluator), CLASSES) is None

    @pytest.mark.parametrize("name", ["coco/bbox_AP50", "coco/segm_APl", "coco/segm_AP-circle"])
    def test_known_names(self, name: str) -> None:
        options = MonitoringOptions(best=name)
        assert choose_best(options, model_of(mask_on=True), evaluator_of(COCOEvaluator), CLASSES) == name

    @pytest.mark.parametrize("name", ["coco/bbox_ap", "bbox/AP", "coco/segm_AP", "coco/bbox_AP-square", "val/loss"])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(TwinsError, match="choose one of coco/bbox_AP, coco/bbox_AP50") as caught:
            choose_best(MonitoringOptions(best=name), model_of(mask_on=False), evaluator_of(COCOEvaluator), CLASSES)
        assert str(caught.value).startswith(f"--best {name!r}") and "\n" not in str(caught.value)

    def test_patience_needs_a_metric(self) -> None:
        with pytest.raises(TwinsError, match=r"--patience.*--best"):
            choose_best(MonitoringOptions(patience=1), model_of(mask_on=False), evaluator_of(DatasetEvaluator), CLASSES)

    def test_an_unknown_name_stops_the_run_before_training(self, tmp_path: Path, toy_data: Path) -> None:
        config = write_lazy(tmp_path / "tiny.py", toy_data, "retinanet", more="train.eval_period = 3\n")
        result = twins("train", config, "--work-dir", tmp_path / "run", "train.monitoring.best=coco/segm_AP")
        assert_error(result, "--best 'coco/segm_AP'", "coco/bbox_AP75")
        assert not list((tmp_path / "run").glob("*.pth"))

    @pytest.mark.parametrize(
        ("metric", "values", "better"),
        [
            ("coco/bbox_AP", [math.nan, 0.1, 0.1, 0.3, math.nan, 0.2], [False, True, False, True, False, False]),
            ("val/loss", [2.0, 1.0, 1.5, math.nan], [True, True, False, False]),
        ],
    )
    def test_which_evaluations_are_better(
        self, tmp_path: Path, toy_data: Path, metric: str, values: list[float], better: list[bool]
    ) -> None:
        config = engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data))
        options = MonitoringOptions(patience=2)
        monitor = Monitor(config.train, None, SimpleNamespace(), metric, options)  # type: ignore[arg-type]
        monitor.trainer = SimpleNamespace(max_iter=9)
        assert [monitor._judge({metric: value}, done) for done, value in enumerate(values, 1)] == better
        last = max(done for done, is_better in enumerate(better, 1) if is_better)
        assert (monitor.best_iteration, monitor.best_value) == (last, values[last - 1])
        assert monitor.num_without_better == len(values) - last and monitor._is_over(8) and not monitor._is_over(9)
        copy = Monitor(config.train, None, SimpleNamespace(), metric, options)  # type: ignore[arg-type]
        copy.load_state_dict(monitor.state_dict())
        assert copy.state_dict() == monitor.state_dict()


class TestEarlyStopping:
    """With a learning rate of 0, no evaluation is better than the first one."""

    def test_stop_and_go_on(self, exact: Path, toy_data: Path) -> None:
        more = "train.update(max_iter=6, eval_period=1, monitoring=dict(patience=2, samples=0))\noptimizer.lr = 0.0\n"
        config, work_dir = write_lazy(exact / "tiny.py", toy_data, "retinanet", more=more), exact / "run"
        result = twins("train", config, "--work-dir", work_dir, "--no-report")
        assert result.code == 0, result.err
        assert "stopped: 2 evaluations have brought no better coco/bbox_AP" in result.out
        assert result.out.count("evaluation after") == 3
        assert (work_dir / "last_checkpoint").read_text() == "model_final.pth"
        final = torch.load(work_dir / "model_final.pth", weights_only=True)
        assert final["iteration"] == final["trainer"]["iteration"] == 2
        assert torch.load(work_dir / "model_best.pth", weights_only=True)["iteration"] == 0
        assert json.loads((work_dir / "metrics.json").read_text())["iter"] == 3

        before = snapshot(work_dir)
        result = twins("train", config, "--work-dir", work_dir, "--resume", "--no-report")
        assert result.code == 0, result.err
        assert "stopped:" in result.out and "evaluation after" not in result.out
        after = snapshot(work_dir)
        assert {name for name in before if before[name] != after[name]} <= {"log.txt", "config.yaml"}

        result = twins("train", config, "--work-dir", work_dir, "--resume", "train.monitoring.patience=3")
        assert result.code == 0, result.err
        assert "resumed after iteration 3" in result.out and result.out.count("evaluation after") == 1
        assert torch.load(work_dir / "model_final.pth", weights_only=True)["iteration"] == 3
        assert not (work_dir / "samples").exists() and not list(work_dir.glob("*tfevents*"))


class TestWeightAverage:
    def test_known_values(self) -> None:
        """Weights 0, 11, 11 + 12 * 23 / 10, … are averaged with weights 10 / 11, 10 / 12, … of the newest one."""
        model = nn.Linear(1, 1, bias=False)
        average = WeightAverage(model)
        found = []
        for value in (0.0, 11.0, 22.0):
            nn.init.constant_(model.weight, value)
            average.after_step()
            found.append(average.model.weight.item())
        assert found == pytest.approx([0, 10, 10 + 12 * 10 / 12])
        assert not average.model.weight.requires_grad and model.weight.requires_grad

    def test_buffers_are_copied(self) -> None:
        model = nn.BatchNorm1d(2)
        average = WeightAverage(model)
        for value in (1.0, 5.0):
            model.running_mean.fill_(value)  # type: ignore[union-attr]
            average.after_step()
        assert average.model.running_mean.tolist() == [5, 5]  # type: ignore[union-attr]

    def test_state(self) -> None:
        """The checkpointer loads the average into the trained model, and the hook puts both where they belong."""
        model, other = nn.Linear(2, 3), nn.Linear(2, 3)
        average, restored = WeightAverage(model), WeightAverage(other)
        for _ in range(3):
            nn.init.normal_(model.weight)
            average.after_step()
        state = {"trained": {k: v.clone() for k, v in average.state_dict()["trained"].items()}, "num_averaged": 3}
        assert average.state_dict()["num_averaged"] == 3
        other.load_state_dict(average.model.state_dict())
        restored.load_state_dict(state)
        for _ in range(2):
            assert torch.equal(other.weight, model.weight)
            assert torch.equal(restored.model.weight, average.model.weight)
            for hook, linear in ((average, model), (restored, other)):
                nn.init.constant_(linear.weight, 0.5)
                hook.after_step()


class TestValidation:
    @pytest.fixture(params=["mask_rcnn", "retinanet"])
    def validation(self, request: pytest.FixtureRequest, tmp_path: Path, toy_data: Path) -> Validation:
        config = engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data, request.param))
        config.train.output_dir = str(tmp_path)
        return Validation(config, instantiate(config.model).train(), with_losses=True, num_samples=2)

    def test_losses_change_nothing_else(self, validation: Validation) -> None:
        model = validation.model
        part = model.backbone.bottom_up.net.eval()  # frozen parts stay in eval mode
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes, random_state = {id(m): m.training for m in model.modules()}, torch.get_rng_state()
        with EventStorage(7):
            losses = mean_losses(model, validation.loss_loader, seed=3)
            assert get_event_storage().latest() == {}
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not part.training
        assert {id(m): m.training for m in model.modules() if m is not part} == {
            key: value for key, value in modes.items() if key != id(part)
        }
        assert losses["val/loss"] == pytest.approx(sum(value for name, value in losses.items() if name != "val/loss"))
        assert len(losses) == {True: 6, False: 3}[hasattr(model, "roi_heads")] and losses["val/loss"] > 0
        assert mean_losses(model, validation.loss_loader, seed=3) == losses

    def test_loss_of_one_image_by_hand(self, validation: Validation) -> None:
        single = next(iter(validation.loss_loader))
        validation.loss_loader = [single]
        with EventStorage():
            _, losses = validation(1)
            if hasattr(validation.model, "loss_normalizer"):
                del validation.model.loss_normalizer
            validation.model.backbone.eval()  # no stochastic depth
            with torch.no_grad():
                expected = validation.model(single)
        # The sampled proposals are different ones, but the other losses depend on the image only.
        for name in ("loss_cls", "loss_box_reg") if not hasattr(validation.model, "roi_heads") else ():
            assert losses[f"val/{name}"] == pytest.approx(expected[name].item(), rel=1e-5)
        assert {name.removeprefix("val/") for name in losses} == {*expected, "loss"}

    def test_samples(self, validation: Validation, tmp_path: Path, toy_data: Path) -> None:
        with EventStorage():
            validation(3)
        paths = sorted((tmp_path / "samples" / "iter_3").iterdir())
        assert [path.name[:2] for path in paths] == ["1_", "2_"] and {path.suffix for path in paths} == {".jpg"}
        for path in paths:
            (original,) = (toy_data / "val2017").glob(f"{path.stem[2:]}.*")
            with Image.open(path) as picture, Image.open(original) as image:
                assert image.width == image.height and 2 * picture.height < picture.width < 2.5 * picture.height
                truth = picture.crop((0, 0, picture.height, picture.height)).resize(image.size)
                difference = np.asarray(truth, dtype=float) - np.asarray(image.convert("RGB"), dtype=float)
            assert np.abs(difference).mean() > 1  # the ground truth is drawn
        assert validation.size == NUM_VAL

    def test_masks_are_needed_for_their_loss(self, tmp_path: Path, toy_data: Path) -> None:
        config = engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data))
        content = json.loads((toy_data / "annotations" / "instances_val2017.json").read_text())
        content["annotations"][0].pop("segmentation")
        (tmp_path / "val.json").write_text(json.dumps(content))
        config.dataloader.test.dataset.ann_file = str(tmp_path / "val.json")
        with pytest.raises(TwinsError, match=r"without a mask.*--val-loss"):
            Validation(config, instantiate(config.model), with_losses=True, num_samples=0)


class TestConsole:
    def test_what_a_run_shows(self, exact: Path, toy_data: Path) -> None:
        more = "train.update(max_iter=4, eval_period=2, monitoring=dict(val_loss=True, tensorboard=True))\n"
        config, work_dir = write_lazy(exact / "tiny.py", toy_data, more=more), exact / "run"
        result = twins("train", config, "--work-dir", work_dir)
        assert result.code == 0, result.err
        lines = result.out.splitlines()
        assert sum(line.startswith("iter 4/4  loss ") for line in lines) == 1
        (table,) = [number for number, line in enumerate(lines) if line.startswith("evaluation after iteration 4: 5 ")]
        titles = [line.split()[0] for line in lines[table + 1 : table + 5]]
        assert titles == ["AP", "box", "mask", "val/loss"]
        assert "best coco/segm_AP so far" in lines[table] or "best coco/segm_AP so far" in result.out
        assert len(lines) < 25
        log = (work_dir / "log.txt").read_text()
        for text in ("Environment info", "Evaluation results for segm", "Average Precision"):
            assert text not in result.out and text in log
        assert sum("tfevents" in path.name for path in work_dir.iterdir()) == 1

    def test_metrics_belong_to_the_iteration(self, exact: Path, toy_data: Path) -> None:
        more = "train.update(max_iter=3, eval_period=2, monitoring=dict(samples=0))\ntrain.checkpointer.period = 1\n"
        config, work_dir = write_lazy(exact / "tiny.py", toy_data, "retinanet", more=more), exact / "run"
        assert twins("train", config, "--work-dir", work_dir).code == 0
        found = json.loads((work_dir / "metrics.json").read_text())
        lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
        assert [line["iteration"] for line in lines] == [0, 1, 2]
        assert found["iter"] == 3
        assert found["losses"] == {name: lines[2][name] for name in ("loss_cls", "loss_box_reg", "total_loss")}
        assert found["metrics"]["coco/bbox_AP"] == pytest.approx(lines[2]["bbox/AP"] / 100)
