"""LazyConfigs inside checkpoints: they come back equal, and nothing that they name is imported or run."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from d2_fixtures import CONFIGS, MARKS, NAMES, clean_detectron2, engine, write_lazy  # noqa: F401  (a fixture)
from detection_fixtures import Run, assert_same_detections, shared_folder
from detectron2.config import instantiate
from PIL import Image

import twins_dense as td
from twins_dense.errors import TwinsError
from twins_dense.evaluation.metrics_file import read_metrics
from twins_dense.frameworks.detectron2.stored import from_data, to_data
from twins_dense.inference import Detections
from twins_dense.weights.read import read_checkpoint

pytestmark = MARKS


@pytest.fixture(scope="module")
def d2_run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Run:
    """A tiny Mask R-CNN after 2 iterations. Tests must not change it."""

    def make(folder: Path) -> None:
        config = write_lazy(folder / "tiny.py", toy_data)
        assert twins("train", config, "--work-dir", folder / "run", "train.max_iter=2").code == 0

    root = shared_folder(tmp_path_factory, "d2_stored", make)
    return Run(root / "tiny.py", toy_data, root / "run", root / "run" / "model_final.pth")


@pytest.mark.parametrize("name", [*NAMES[::5], "mask_rcnn_svt_small_1x.yaml"])
def test_shipped_configs_come_back_equal(name: str) -> None:
    config = engine.load_config(CONFIGS / (name if name.endswith("yaml") else f"{name}.py"))
    data = to_data(config)
    assert json.loads(json.dumps(data)) == data
    restored = from_data(data)
    data["train"].pop("init", None)  # a checkpoint to start from
    assert to_data(restored) == data
    assert restored.train.init_checkpoint == ""


@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_the_same_model_is_built(head: str, toy_data: Path, tmp_path: Path) -> None:
    config = engine.load_config(write_lazy(tmp_path / "tiny.py", toy_data, head))
    models = []
    for variant in (config, from_data(to_data(config))):
        torch.manual_seed(0)
        models.append(instantiate(variant.model))
    assert repr(models[0]) == repr(models[1])
    for (name, value), (other_name, other) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert name == other_name and torch.equal(value, other)


# What is changed in the data (dotted path and value), and a part of the message.
ATTACKS: list[tuple[str, Any, str]] = [
    ("model._target_", "os.system", "os.system"),
    ("model._target_", "posix.system", "posix.system"),
    ("model._target_", "builtins.eval", "builtins.eval"),
    ("model._target_", "evil_module.Trap", "evil_module.Trap"),
    ("model._target_", "evil_module", "evil_module"),
    ("model._target_", "detectron2.data.build.os.system", "os.system"),
    ("model._target_", "detectron2.utils.env.setup_custom_environment", "setup_custom_environment"),
    ("model._target_", "detectron2.modeling.mmdet_wrapper.MMDetBackbone", "MMDetBackbone"),
    ("model._target_", "detectron2.config.instantiate", "instantiate"),
    ("model._target_", "torch.load", "torch.load"),
    ("model._target_", "torch.hub.load", "torch.hub.load"),
    ("model._target_", "twins_dense.frameworks.detectron2.engine.train", "engine.train"),
    ("model._target_", {"_target_": "os.system", "command": "x"}, "model._target_"),
    ("model._target_", ["os.system"], "model._target_"),
    ("model.backbone.bottom_up.net._target_", "evil_module.Trap", "model.backbone.bottom_up.net._target_"),
    ("dataloader.test.mapper.augmentations", [{"_target_": "evil_module.Trap"}], "augmentations.0._target_"),
    ("model.roi_heads.num_classes", "${oc.env:HOME}", "${oc.env:HOME}"),
    ("train.output_dir", "${model.input_format}", "${model.input_format}"),
    ("hooks", {"_target_": "evil_module.Trap"}, "hooks"),
    ("model.input_format", print, "builtin_function_or_method"),
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if the module `evil_module` is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil_module.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w').close()\nTrap = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return tmp_path / "trace"


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    node = data
    for parent in parents:
        node = node[parent]
    node[last] = value
    return data


@pytest.mark.parametrize(("path", "value", "part"), ATTACKS, ids=lambda value: str(value)[:40])
def test_attacks_are_refused(path: str, value: Any, part: str, trap: Path) -> None:
    data = to_data(engine.load_config(CONFIGS / "mask_rcnn_svt_small_1x.py"))
    with pytest.raises(TwinsError) as caught:
        from_data(changed(data, path, value))
    assert "\n" not in str(caught.value) and part in str(caught.value)
    assert not trap.exists() and "evil_module" not in sys.modules


def test_an_attack_on_the_command_line(d2_run: Run, tmp_path: Path, trap: Path) -> None:
    content = read_checkpoint(d2_run.checkpoint)
    content["twins_dense"]["config"]["model"] = {"_target_": "os.system", "command": f"touch {trap}"}
    torch.save(content, tmp_path / "model_final.pth")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    result = twins("predict", tmp_path / "model_final.pth", tmp_path / "photo.png", "--out", tmp_path / "out")
    assert_error(result, "os.system", "model_final.pth")
    assert not trap.exists()


@pytest.mark.parametrize("part", ["model", "train", "dataloader"])
def test_a_broken_record(part: str, d2_run: Run, tmp_path: Path) -> None:
    content = read_checkpoint(d2_run.checkpoint)
    content["twins_dense"]["config"][part] = "none"
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(TwinsError) as caught:
        td.load_model(tmp_path / "model_final.pth")
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_stored(toy_data: Path, tmp_path: Path, trap: Path) -> None:
    """A run with an augmentation of one's own goes well; its checkpoints need the config."""
    (tmp_path / "modules" / "own.py").write_text(
        "from detectron2.data import transforms as T\nclass Own(T.RandomFlip):\n    pass\n"
    )
    more = "import own\ndataloader.train.mapper.augmentations[0]._target_ = own.Own\n"
    config = write_lazy(tmp_path / "tiny.py", toy_data, more=more)
    result = twins("train", config, "--work-dir", tmp_path / "run", "train.max_iter=1")
    assert result.code == 0, result.err
    assert "will not contain the config" in result.out and "own.Own" in result.out
    with pytest.raises(TwinsError, match="does not contain its config"):
        td.load_model(tmp_path / "run")
    assert td.load_model((config, tmp_path / "run" / "model_final.pth")).task == "detection"


class TestModel:
    def photos(self, run: Run) -> list[Path]:
        return sorted((run.data / "val2017").iterdir())

    def test_equal_to_the_command_line(self, d2_run: Run, tmp_path: Path) -> None:
        files = self.photos(d2_run)
        result = twins("predict", d2_run.checkpoint, *files, "--score", 0.1, "--out", tmp_path / "out")
        assert result.code == 0, result.err
        entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
        for source in (d2_run.work_dir, (d2_run.config, d2_run.checkpoint)):
            model = td.load_model(source)
            assert (model.task, model.classes) == ("detection", ("circle", "rectangle", "triangle"))
            for found, entry in zip(model.predict(files, score=0.1), entries, strict=True):
                assert isinstance(found, Detections) and len(found) > 0
                assert found.to_coco() == entry["detections"]

    def test_batches_equal_single_images(self, d2_run: Run) -> None:
        files = self.photos(d2_run)[:4]
        model = td.load_model(d2_run.checkpoint, overrides=["model.roi_heads.box_predictor.test_topk_per_image=20"])
        for together, file in zip(model.predict(files, score=0.0, batch_size=4), files, strict=True):
            pair = [
                type("Fields", (), {n: torch.from_numpy(getattr(f, n)) for n in ("boxes", "scores", "labels")})
                for f in (together, model.predict(file, score=0.0))
            ]
            assert_same_detections(*pair, limit=20)

    def test_evaluate_equals_eval(self, d2_run: Run, tmp_path: Path) -> None:
        assert twins("eval", d2_run.config, d2_run.checkpoint, "--work-dir", tmp_path / "eval").code == 0
        expected = read_metrics(tmp_path / "eval")
        found = td.load_model(d2_run.checkpoint).evaluate()
        # There are no large objects, so some scores are not a number.
        assert found == pytest.approx({name: expected[name] for name in found}, rel=0, abs=0, nan_ok=True)
        assert len(found) > 10

    def test_views_and_tiles_run(self, d2_run: Run) -> None:
        model = td.load_model(d2_run.checkpoint)
        image = np.asarray(Image.open(self.photos(d2_run)[0]).convert("RGB").resize((150, 100)))
        before = model.predict(image, score=0.0)
        for options in ({"tta": "flip,0.5"}, {"tile": 64, "batch_size": 2}):
            found = model.predict(image, score=0.0, **options)
            assert len(found) > 0 and found.masks is not None and found.masks.shape[1:] == (100, 150)
        assert (model.predict(image, score=0.0).boxes == before.boxes).all()
