"""Evaluation and loading reject checkpoints and data that do not belong to the model."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import Malicious
from detection_fixtures import Run, write_config
from run_fixtures import config_of, one_line_of

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.engine import load_config, set_data_root
from twins_dense.frameworks.mmengine.runner import load_model


@pytest.fixture(params=["missing", "cut", "malicious", "text", "bare state dict", "another model"])
def bad_checkpoint(request: pytest.FixtureRequest, tmp_path: Path, tiny_run: Run) -> Iterator[Path]:
    path = tmp_path / "bad.pth"
    trace = tmp_path / "trace"
    if request.param == "cut":
        content = tiny_run.checkpoint.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif request.param == "malicious":
        path.write_bytes(pickle.dumps({"meta": {}, "state_dict": Malicious(trace)}))
    elif request.param == "text":
        path.write_text("no checkpoint")
    elif request.param in ("bare state dict", "another model"):
        checkpoint = torch.load(tiny_run.checkpoint, weights_only=True)
        key = "detector.backbone.bottom_up.blocks.0.0.attn.proj.weight"
        checkpoint["state_dict"][key] = checkpoint["state_dict"][key][:5]
        torch.save(checkpoint["state_dict"] if request.param == "bare state dict" else checkpoint, path)
    yield path
    assert not trace.exists()


class TestEvaluateAndLoad:
    def test_bad_checkpoint(self, bad_checkpoint: Path, tiny_run: Run, tmp_path: Path) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config_of(tiny_run), bad_checkpoint, tmp_path / "out")
        one_line_of(caught, str(bad_checkpoint))
        assert not (tmp_path / "out" / "metrics.json").exists()
        with pytest.raises(TwinsError) as caught:
            load_model(config_of(tiny_run), bad_checkpoint)
        one_line_of(caught, str(bad_checkpoint))

    def test_model_without_its_head(self, tiny_run: Run, tmp_path: Path) -> None:
        """Loading is strict: the error names both a missing and an unexpected entry."""
        checkpoint = torch.load(tiny_run.checkpoint, weights_only=True)
        state = checkpoint["state_dict"]
        state["detector.other"] = state.pop("detector.roi_heads.box_predictor.cls_score.bias")
        torch.save(checkpoint, tmp_path / "renamed.pth")
        with pytest.raises(TwinsError) as caught:
            load_model(config_of(tiny_run), tmp_path / "renamed.pth")
        one_line_of(caught, "another model", "cls_score.bias is missing", "detector.other (4,) is unexpected")

    def test_load_model(self, tiny_run: Run) -> None:
        model, meta = load_model(config_of(tiny_run), tiny_run.checkpoint)
        assert not model.training
        assert list(meta["classes"]) == ["circle", "rectangle", "triangle"]
        state = torch.load(tiny_run.checkpoint, weights_only=True)["state_dict"]
        found = model.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key].cpu(), state[key]) for key in state)

    def test_evaluate_gives_the_metrics_of_the_run(self, tiny_run: Run, tmp_path: Path) -> None:
        metrics = engine.evaluate(config_of(tiny_run), tiny_run.checkpoint, tmp_path / "out")
        expected = json.loads((tiny_run.work_dir / "metrics.json").read_text())["metrics"]
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
        assert found == pytest.approx(metrics, abs=1e-9)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=1e-6)

    def test_no_gpu_means_float32(self, tiny_run: Run, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        path = write_config(
            tmp_path / "half.py",
            tiny_run.data,
            more="\noptim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')\n",
        )
        runner = engine.train(load_config(path), tmp_path / "run")
        assert type(runner.optim_wrapper).__name__ == "OptimWrapper"
        assert (tmp_path / "run" / "epoch_1.pth").is_file()


def break_data(data: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_first_category(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "zebra"


class TestDataBelongsToTheModel:
    @pytest.fixture
    def data(self, toy_data: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(toy_data, tmp_path / "toy"))

    def test_validation_data_with_other_classes(self, tiny_run: Run, data: Path, tmp_path: Path) -> None:
        break_data(data, "val", rename_first_category)
        config = config_of(tiny_run)
        set_data_root(config, data)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, "instances_val2017.json", "1 zebra", "1 circle", "the training data")

    def test_evaluation_data_with_other_classes(self, tiny_run: Run, data: Path, tmp_path: Path) -> None:
        break_data(data, "val", rename_first_category)
        config = config_of(tiny_run)
        set_data_root(config, data)
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config, tiny_run.checkpoint, tmp_path / "out")
        one_line_of(caught, "instances_val2017.json", "1 zebra", "1 circle", str(tiny_run.checkpoint))

    def test_evaluation_needs_no_training_data(self, tiny_run: Run, data: Path, tmp_path: Path) -> None:
        shutil.rmtree(data / "train2017")
        (data / "annotations" / "instances_train2017.json").unlink()
        config = config_of(tiny_run)
        set_data_root(config, data)
        metrics = engine.evaluate(config, tiny_run.checkpoint, tmp_path / "out")
        written = json.loads((tmp_path / "out" / "metrics.json").read_text())
        trained = torch.load(tiny_run.checkpoint, weights_only=True)["meta"]
        assert written["metrics"] == metrics and written["checkpoint"] == str(tiny_run.checkpoint)
        assert (written["epoch"], written["iter"]) == (trained["epoch"], trained["iter"])

    def test_evaluation_needs_no_imagenet_file(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, [f"model.backbone.weights={tmp_path / 'gone.pth'}"])
        assert engine.evaluate(config, tiny_run.checkpoint, tmp_path / "out")
