"""Training goes on from a model for other classes, with a part of the backbone frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import Run, write_config
from run_fixtures import config_of, one_line_of
from segmentation_fixtures import CLASSES

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.engine import load_config, set_training
from twins_dense.frameworks.options import TrainingOptions

HEADS = {
    f"detector.roi_heads.{layer}.{name}"
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    for name in ("weight", "bias")
}


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The toy data with the first two classes, under other names."""
    root = tmp_path_factory.mktemp("two")
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(toy_data / split)
        content = json.loads((toy_data / "annotations" / f"instances_{split}.json").read_text())
        kept = sorted(category["id"] for category in content["categories"])[:2]
        content["categories"] = [{"id": i, "name": f"other {i}"} for i in kept]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["state_dict"]


def start(config: Any, work_dir: Path, **options: Any) -> dict[str, Any]:
    """Train with a rate of almost zero, so that the checkpoint shows the values that training began with."""
    set_training(config, TrainingOptions(lr=1e-30, **options))
    config.optim_wrapper.optimizer.weight_decay = 0.0
    if config.train_cfg.get("max_epochs"):
        config.train_cfg.max_epochs = 1
    engine.train(config, work_dir)
    return state_of(next(work_dir.glob("*_1.pth")))


class TestInit:
    def test_other_classes(self, tiny_run: Run, two_classes: Path, tmp_path: Path) -> None:
        config = load_config(write_config(tmp_path / "two.py", two_classes, num_classes=2))
        found, before = start(config, tmp_path / "run", init=tiny_run.checkpoint), state_of(tiny_run.checkpoint)
        assert found.keys() == before.keys()
        assert {name for name in found if not torch.equal(found[name], before[name])} == HEADS

    def test_the_same_classes(self, tiny_run: Run, tmp_path: Path) -> None:
        found = start(config_of(tiny_run), tmp_path / "run", init=tiny_run.checkpoint)
        before = state_of(tiny_run.checkpoint)
        assert all(torch.equal(found[name], before[name]) for name in before)

    def test_as_many_other_classes(self, tiny_run: Run, toy_data: Path, tmp_path: Path) -> None:
        """Heads of the same shape that stand for other classes start afresh."""
        root = tmp_path / "renamed"
        (root / "annotations").mkdir(parents=True)
        for split in ("train2017", "val2017"):
            (root / split).symlink_to(toy_data / split)
            content = json.loads((toy_data / "annotations" / f"instances_{split}.json").read_text())
            content["categories"] = [{**c, "name": c["name"].upper()} for c in content["categories"]]
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        found = start(load_config(write_config(tmp_path / "c.py", root)), tmp_path / "run", init=tiny_run.checkpoint)
        before = state_of(tiny_run.checkpoint)
        assert {name for name in found if not torch.equal(found[name], before[name])} == HEADS

    def test_of_a_segmentor(self, segmentation_run: Run, tmp_path: Path) -> None:
        config = load_config(segmentation_run.config, ["train_cfg.max_iters=1", "default_hooks.checkpoint.interval=1"])
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            loader.dataset.metainfo.classes = (*CLASSES, "nothing")
        config.model.decode_head.num_classes = 4
        # BatchNorm's statistics change in training, so the parameters alone are compared.
        found, before = (
            start(config, tmp_path / "run", init=segmentation_run.checkpoint),
            state_of(segmentation_run.checkpoint),
        )
        changed = {name for name in found if found[name].shape != before[name].shape}
        assert changed == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
        kept = [n for n in found if n not in changed and "running" not in n and "num_batches" not in n]
        assert all(torch.equal(found[name], before[name]) for name in kept)

    def test_what_does_not_fit(self, tiny_run: Run, segmentation_run: Run, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(2)}, tmp_path / "odd.pth")
        for config, init, words in (
            (config_of(tiny_run, ["model.fpn_channels=16"]), tiny_run.checkpoint, "fpn"),
            (config_of(tiny_run), tmp_path / "missing.pth", "missing.pth"),
            (config_of(tiny_run), tmp_path / "odd.pth", "not from a training run"),
            (config_of(tiny_run), segmentation_run.checkpoint, "cannot be the start"),
            (load_config(segmentation_run.config), tiny_run.checkpoint, str(tiny_run.checkpoint)),
        ):
            set_training(config, TrainingOptions(init=init))
            with pytest.raises(TwinsError) as caught:
                engine.train(config, tmp_path / "run")
            one_line_of(caught, words)

    def test_not_together_with_load_from(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run)
        config.load_from = config.init = str(tiny_run.checkpoint)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, "load_from=", "init=")

    def test_a_resumed_run_does_not_start_again(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run)
        found = start(config, tmp_path / "run", init=tiny_run.checkpoint)
        config.init, config.train_cfg.max_epochs = str(tmp_path / "gone.pth"), 2
        engine.train(config, tmp_path / "run", resume=True)
        resumed = state_of(tmp_path / "run" / "epoch_2.pth")
        assert all(torch.equal(resumed[name], found[name]) for name in found)


@pytest.mark.parametrize(("part", "num_stages"), [("stages:2", 2), ("backbone", 4)])
def test_frozen_stages(part: str, num_stages: int, tiny_run: Run, tmp_path: Path) -> None:
    """They stay bit-equal, although the optimiser decays weights; everything else is trained."""
    config = config_of(tiny_run, ["train_cfg.max_epochs=1"])
    set_training(config, TrainingOptions(init=tiny_run.checkpoint, freeze=part))
    engine.train(config, tmp_path / "run")
    found, before = state_of(tmp_path / "run" / "epoch_1.pth"), state_of(tiny_run.checkpoint)
    prefix = "detector.backbone.bottom_up."
    frozen = {n for n in found if n.startswith(prefix) and int(n.removeprefix(prefix).split(".")[1]) < num_stages}
    assert all(torch.equal(found[name], before[name]) for name in frozen)
    weights = {name for name in found if name.endswith("weight") and found[name].dim() > 1}
    assert {name for name in weights if torch.equal(found[name], before[name])} == weights & frozen


@pytest.mark.parametrize("part", ["stages:5", "head"])
def test_parts_that_cannot_be_frozen(part: str, tiny_run: Run, tmp_path: Path) -> None:
    config = config_of(tiny_run)
    set_training(config, TrainingOptions(freeze=part))
    with pytest.raises(TwinsError) as caught:
        engine.train(config, tmp_path / "run")
    one_line_of(caught, f"freeze={part!r}")


def test_fine_tuning_beats_training_from_scratch(tiny_run: Run, two_classes: Path, tmp_path: Path) -> None:
    """With the same few iterations, the loss is lower."""
    losses = []
    for number, init in enumerate((None, tiny_run.checkpoint)):
        config = load_config(write_config(tmp_path / f"c{number}.py", two_classes, num_classes=2))
        set_training(config, TrainingOptions(init=init))
        runner = engine.train(config, tmp_path / f"run{number}")
        losses.append(runner.message_hub.get_scalar("train/loss").mean())
    assert losses[1] < losses[0]
