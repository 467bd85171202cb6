"""MMEngine configs inside checkpoints: they come back equal, and nothing that they name is imported or run."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import Run, write_config
from mmengine.config import Config
from PIL import Image

from twins_dense.errors import TwinsError
from twins_dense.frameworks import open_config
from twins_dense.frameworks.mmengine.stored import from_data, to_data
from twins_dense.frameworks.shipped_configs import list_configs
from twins_dense.weights.read import read_checkpoint

NAMES = [name for name in list_configs() if not name.startswith("detectron2/")]


def test_every_shipped_config_comes_back_equal() -> None:
    assert len(NAMES) > 30
    for name in NAMES:
        _, config = open_config(name)
        data = to_data(config)
        content = config.to_dict()
        assert {*data} >= {"model", "train_dataloader", "val_dataloader", "val_evaluator"}, name
        restored = from_data(data).to_dict()
        assert {key: restored[key] for key in data} == {key: content[key] for key in data} == data, name


def test_initial_weights_and_paths_of_the_run_are_left_out() -> None:
    overrides = ["model.backbone.weights=somewhere.pth", "load_from=elsewhere.pth"]
    _, config = open_config("torchvision/mask_rcnn_svt_small_1x", overrides)
    config.work_dir = "mine"
    restored = from_data(to_data(config))
    assert restored.model.backbone["weights"] is None
    assert not {"work_dir", "load_from", "default_hooks", "custom_hooks"} & {*restored}


DETECTOR, SEGMENTOR = "torchvision/mask_rcnn_svt_small_1x", "mmseg/upernet_svt_small_160k"
# What is changed in the data (dotted path and value), and a part of the message.
ATTACKS: list[tuple[str, str, Any, str]] = [
    (DETECTOR, "model.type", "evil_module.Trap", "evil_module.Trap"),
    (DETECTOR, "model.type", "evil_module", "model.type"),
    (DETECTOR, "model.type", "os.system", "os.system"),
    (DETECTOR, "model.type", ["TwinsMaskRCNN"], "model.type"),
    (DETECTOR, "model.type", "AdamW", "model.type"),  # known, but not as a model
    (DETECTOR, "model.backbone.type", "torch.load", "torch.load"),
    (DETECTOR, "model._scope_", "evil_module", "_scope_"),
    (DETECTOR, "custom_imports", {"imports": ["evil_module"]}, "custom_imports"),
    (DETECTOR, "default_scope", "evil_module", "default_scope"),
    (DETECTOR, "custom_hooks", [{"type": "evil_module.Trap"}], "custom_hooks"),
    (DETECTOR, "load_from", "evil.pth", "load_from"),
    (DETECTOR, "val_dataloader.dataset.type", "evil_module.Trap", "val_dataloader.dataset.type"),
    (DETECTOR, "val_dataloader.dataset.type", "BaseDataset", "BaseDataset"),  # it reads pickled annotations
    (DETECTOR, "val_dataloader.dataset.transforms", [{"type": "evil_module.Trap"}], "transforms.0.type"),
    (DETECTOR, "val_dataloader.dataset.transforms", [{"type": "functional"}], "transforms.0.type"),
    (DETECTOR, "val_dataloader.sampler.type", "evil_module.Trap", "sampler.type"),
    (DETECTOR, "val_dataloader.collate_fn", {"type": "evil_module.trap"}, "collate_fn.type"),
    (DETECTOR, "val_evaluator", [{"type": "evil_module.Trap"}], "val_evaluator.0.type"),
    (DETECTOR, "optim_wrapper.constructor", "evil_module.Trap", "optim_wrapper.constructor"),
    (DETECTOR, "optim_wrapper.optimizer.type", "evil_module.Trap", "optimizer.type"),
    (DETECTOR, "param_scheduler", [{"type": "evil_module.Trap"}], "param_scheduler.0.type"),
    (DETECTOR, "model.options", print, "builtin_function_or_method"),
    (DETECTOR, "model.options", {1: 2}, "not a string"),
    (SEGMENTOR, "model.decode_head.type", "evil_module.Trap", "decode_head.type"),
    (SEGMENTOR, "model.decode_head.norm_cfg.type", "evil_module.Trap", "norm_cfg.type"),
    (SEGMENTOR, "model.backbone.type", "evil_module.Backbone", "model.backbone.type"),
    (SEGMENTOR, "model.backbone.type", "TIMMBackbone", "model.backbone.type"),  # it reads files that it is given
    (SEGMENTOR, "model.decode_head.loss_decode.class_weight", "http://localhost/evil.pkl", "class_weight"),
    (SEGMENTOR, "val_dataloader.dataset.pipeline", [{"type": "evil_module.Trap"}], "pipeline.0.type"),
    (SEGMENTOR, "val_dataloader.dataset.pipeline", [{"type": "LoadBiomedicalData"}], "pipeline.0.type"),  # the same
    (SEGMENTOR, "tta_model.type", "evil_module.Trap", "tta_model.type"),
    (SEGMENTOR, "tta_pipeline", [{"type": "evil_module.Trap"}], "tta_pipeline.0.type"),
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if the module `evil_module`, or one with the name of a type, is imported."""
    trace = tmp_path / "trace"
    (tmp_path / "modules").mkdir()
    for name in ("evil_module", "AdamW", "functional"):
        (tmp_path / "modules" / f"{name}.py").write_text(
            f"open({str(trace)!r}, 'w').close()\nTrap = trap = Backbone = dict\n"
        )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return trace


@pytest.mark.parametrize(("name", "path", "value", "part"), ATTACKS, ids=lambda value: str(value)[:40])
def test_attacks_are_refused(name: str, path: str, value: Any, part: str, trap: Path) -> None:
    data = copy.deepcopy(to_data(open_config(name)[1]))
    *parents, last = path.split(".")
    node = data
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(TwinsError) as caught:
        from_data(data)
    assert "\n" not in str(caught.value) and part in str(caught.value)
    assert not trap.exists() and "evil_module" not in sys.modules


@pytest.mark.parametrize("key", ["init_cfg", "pretrained"])
def test_files_to_load_weights_from_are_ignored(key: str) -> None:
    data = to_data(open_config(SEGMENTOR)[1])
    data["model"] = {**data["model"], key: {"type": "Pretrained", "checkpoint": "http://localhost/evil.pth"}}
    assert key not in from_data(data).model


class TestCheckpoints:
    def test_training_stores_the_config(self, tiny_run: Run) -> None:
        record = read_checkpoint(tiny_run.checkpoint)["twins_dense"]
        assert (record["version"], record["engine"]) == (1, "mmengine")
        config = from_data(record["config"])
        assert config.model.num_classes == 3 and config.val_dataloader.dataset.data_root == str(tiny_run.data)

    def changed(self, run: Run, path: Path, change: Any) -> Path:
        content = read_checkpoint(run.checkpoint)
        change(content)
        torch.save(content, path)
        return path

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (lambda c: c.pop("twins_dense"), ("does not contain its config", "CONFIG CHECKPOINT")),
            (lambda c: c.update(twins_dense=3), ("broken",)),
            (lambda c: c["twins_dense"].update(version=2), ("version 2", "update twins_dense")),
            (lambda c: c["twins_dense"].update(engine="caffe"), ("'caffe'",)),
            (lambda c: c["twins_dense"]["config"].pop("model"), ("no model",)),
            (lambda c: c["twins_dense"]["config"]["model"].update(options=c["twins_dense"]), ("recursion",)),
            (lambda c: c["twins_dense"]["config"]["model"].update(type="evil_module.Trap"), ("evil_module.Trap",)),
            (lambda c: c["twins_dense"]["config"]["model"].update(backbone="none"), ("stored_config.py",)),
            (lambda c: c["twins_dense"]["config"]["model"].update(fpn_channels=16), ("belongs to another model",)),
            (lambda c: c["twins_dense"]["config"]["model"].update(num_clases=4), ("num_clases",)),
        ],
        ids=["old", "broken", "newer", "engine", "no model", "endless", "evil", "no backbone", "misfit", "typo"],
    )
    def test_bad_records_are_one_line(
        self, tiny_run: Run, tmp_path: Path, trap: Path, change: Any, parts: tuple[str, ...]
    ) -> None:
        Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
        checkpoint = self.changed(tiny_run, tmp_path / "epoch_2.pth", change)
        result = twins("predict", checkpoint, tmp_path / "photo.png", "--out", tmp_path / "out")
        assert_error(result, *parts)
        assert not trap.exists() and not (tmp_path / "out").exists()

    def test_a_config_that_cannot_be_stored(self, toy_data: Path, tmp_path: Path, trap: Path) -> None:
        """A run with a metric of one's own goes well; its checkpoints need the config."""
        (tmp_path / "modules" / "own_metric.py").write_text(
            "from mmengine.registry import METRICS\n"
            "from twins_dense.frameworks.mmengine.coco_metric import CocoMetric\n"
            "METRICS.register_module(name='OwnMetric', module=type('OwnMetric', (CocoMetric,), {}), force=True)\n"
        )
        more = 'val_evaluator = dict(type="OwnMetric")\ntest_evaluator = val_evaluator\n'
        more += 'custom_imports = dict(imports=["twins_dense.frameworks.mmengine.detectors", "own_metric"])\n'
        config = write_config(tmp_path / "own.py", toy_data, more=more)
        result = twins("train", config, "--work-dir", tmp_path / "run")
        assert result.code == 0, result.err
        assert "will not contain the config" in result.out and "OwnMetric" in result.out
        Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
        arguments = (tmp_path / "photo.png", "--out", tmp_path / "out")
        assert_error(twins("predict", tmp_path / "run", *arguments), "does not contain its config")
        assert twins("predict", config, tmp_path / "run" / "epoch_1.pth", *arguments).code == 0


def test_a_config_with_types_as_classes_is_not_stored() -> None:
    _, config = open_config(DETECTOR)
    config.val_evaluator = {"type": dict}
    with pytest.raises(TwinsError, match="val_evaluator"):
        to_data(config)
    assert isinstance(config, Config)
