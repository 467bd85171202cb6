"""Training checks configs, folders and checkpoints before it starts, and rejects those that do not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import snapshot
from detection_fixtures import Run, read_scalars, write_config
from run_fixtures import config_of, one_line_of

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.engine import load_config


class TestLearningRate:
    def test_scaled_with_the_batch_size(self, tiny_run: Run) -> None:
        """The rate is 1e-3 for 16 images; here, the batch size is 2. The warm-up starts at 0.01 and takes 5 steps."""
        (records,) = read_scalars(tiny_run.work_dir)
        found = [record["lr"] for record in records if "lr" in record]
        warm_up = [0.01 + 0.99 * i / 5 for i in range(6)]
        assert found == pytest.approx([1e-3 * 2 / 16 * factor for factor in [*warm_up, 1, 1]])

    def test_logged(self, tiny_run: Run) -> None:
        (log,) = tiny_run.work_dir.glob("*/*.log")
        assert "batch size is 2. Scaling the original LR by 0.125" in log.read_text()


class TestTrain:
    def test_refuses_a_folder_with_a_run(self, tiny_run: Run) -> None:
        before = snapshot(tiny_run.work_dir)
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run), tiny_run.work_dir)
        one_line_of(caught, str(tiny_run.work_dir), "--resume", "--work-dir")
        assert snapshot(tiny_run.work_dir) == before

    def test_nothing_to_resume(self, tiny_run: Run, tmp_path: Path) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run), tmp_path / "none", resume=True)
        one_line_of(caught, str(tmp_path / "none"), "no run to resume", "without --resume")
        assert not (tmp_path / "none").exists()

    def test_other_number_of_classes(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.num_classes=5"])
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, "3 categories", "5 classes", "model.num_classes=3")

    def test_resume_with_another_model(self, tiny_run: Run, tmp_path: Path) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, ["model.fpn_channels=16"]), tmp_path / "run", resume=True)
        one_line_of(caught, str(tmp_path / "run" / "epoch_2.pth"), "another model", "(16, ", "(32, ")
        assert snapshot(tmp_path / "run") == before

    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_resume_from_a_broken_checkpoint(self, tiny_run: Run, tmp_path: Path, damage: str) -> None:
        """The folder was also moved; the checkpoint inside it is read."""
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        last = tmp_path / "run" / "epoch_2.pth"
        last.unlink() if damage == "gone" else last.write_bytes(last.read_bytes()[:5000])
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run), tmp_path / "run", resume=True)
        one_line_of(caught, str(tmp_path / "run"), "epoch_2.pth")
        assert snapshot(tmp_path / "run") == before

    @pytest.mark.parametrize(
        ("damage", "part"),
        [
            (lambda content: content.pop("optimizer"), "it has no state of an optimiser"),
            (lambda content: content.update(optimizer={}), "it has no state of an optimiser"),
            (lambda content: content["optimizer"].update(state={}), "the state of its optimiser is empty"),
            (lambda content: content["optimizer"].update(param_groups=[]), "its optimiser has 0 groups"),
            (lambda content: content.pop("message_hub"), "no message_hub"),
        ],
    )
    def test_resume_without_a_state(
        self, tiny_run: Run, tmp_path: Path, damage: Callable[[Any], object], part: str
    ) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        content = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
        damage(content)
        torch.save(content, tmp_path / "run" / "epoch_2.pth")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, ["train_cfg.max_epochs=3"]), tmp_path / "run", resume=True)
        one_line_of(caught, part, "cannot be resumed")

    def test_resume_with_another_optimiser(self, tiny_run: Run, tmp_path: Path) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        override = "optim_wrapper.optimizer={'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}"
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, [override, "train_cfg.max_epochs=3"]), tmp_path / "run", resume=True)
        one_line_of(caught, "epoch_2.pth' cannot be resumed", "'exp_avg'", "SGD stores ['momentum_buffer']")

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("train_dataloader.batch_size=1", ("batch_size=1: ", "2 images per iteration")),
            ("train_cfg.max_epochs=1", ("train_cfg.max_epochs=1", "already done 2")),
        ],
    )
    def test_resume_that_would_not_go_on(
        self, tiny_run: Run, tmp_path: Path, override: str, parts: tuple[str, ...]
    ) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, [override]), tmp_path / "run", resume=True)
        one_line_of(caught, *parts)
        assert snapshot(tmp_path / "run") == before

    def test_resume_of_a_finished_run_loses_nothing(self, tiny_run: Run, tmp_path: Path) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert before["metrics"]
        engine.train(config_of(tiny_run), tmp_path / "run", resume=True)
        assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == before

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    def test_losses_that_are_not_finite(self, kind: str, toy_data: Path, tmp_path: Path) -> None:
        """They stop the run; earlier checkpoints are kept, and contain only finite values."""
        more = (
            "default_hooks['checkpoint'].update(by_epoch=False, interval=1, max_keep_ckpts=2)\nparam_scheduler = None\n"
        )
        if kind == "TwinsRetinaNet":
            more += "train_dataloader['dataset']['with_masks'] = False\nval_evaluator['iou_types'] = ('bbox',)\n"
        config = load_config(
            write_config(tmp_path / "tiny.py", toy_data, kind=kind, more=more), ["optim_wrapper.optimizer.lr=1e30"]
        )
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, "iteration 1: not finite: ", "loss_", "checkpoints written so far are kept", "optimizer.lr")
        (checkpoint,) = (tmp_path / "run").glob("iter_*.pth")
        assert checkpoint.name == "iter_1.pth"
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())

    @pytest.mark.parametrize(
        "override",
        [
            "train_cfg.val_interval=0",
            "train_cfg.max_epochs=0",
            "train_cfg.max_epochs=soon",
            "default_hooks.checkpoint.max_keep_ckpts=1",
        ],
    )
    def test_settings_that_would_fail_later(self, tiny_run: Run, tmp_path: Path, override: str) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, [override]), tmp_path / "run")
        one_line_of(caught, override.partition("=")[0].rpartition(".")[2])
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    def test_both_detectors_learn(self, kind: str, toy_data: Path, tmp_path: Path) -> None:
        """The losses decrease over 2 epochs of 4 iterations on 8 images."""
        more = ""
        if kind == "TwinsRetinaNet":
            more = "train_dataloader['dataset']['with_masks'] = False\nval_evaluator['iou_types'] = ('bbox',)\n"
        path = write_config(tmp_path / f"learn_{kind}.py", toy_data, epochs=2, more=more, kind=kind)
        runner = engine.train(load_config(path, ["optim_wrapper.optimizer.lr=8e-3"]), tmp_path / "run")
        losses = [record["loss"] for record in read_scalars(tmp_path / "run")[0] if "loss" in record]
        assert len(losses) == 8 and all(math.isfinite(loss) and loss > 0 for loss in losses)
        assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
        of_classes = {name for name in metrics if "_AP-" in name or "_AP50-" in name}
        kinds = [f"{t}_{m}" for t in ("bbox", "segm")[: 2 if kind == "TwinsMaskRCNN" else 1] for m in ("AP", "AP50")]
        assert of_classes == {f"coco/{k}-{name}" for k in kinds for name in ("circle", "rectangle", "triangle")}
        assert len(metrics) - len(of_classes) == (24 if kind == "TwinsMaskRCNN" else 12)
        torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
        assert type(runner.model).__name__ == kind

    def test_unknown_component(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.type=TwinsMaskRCN"])
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, str(tiny_run.config), "TwinsMaskRCN")

    @pytest.mark.parametrize(
        "override",
        [
            "optim_wrapper.optimizer.lr=high",
            "optim_wrapper.optimizer.lr=-1",
            "train_dataloader.batch_size=0",
            "train_dataloader.num_workers=-1",
            "model.fpn_channels=-3",
            "model.min_size=tiny",
            "param_scheduler.0.type=LinearLRR",
        ],
    )
    def test_value_that_can_t_be_used(self, tiny_run: Run, tmp_path: Path, override: str) -> None:
        config = config_of(tiny_run, [override])
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught)


class TestWhereARunMayStart:
    @pytest.mark.parametrize("missing", ["model", "train_dataloader"])
    def test_half_a_config(self, missing: str, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run)
        config.pop(missing)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, str(tiny_run.config), f"has no {missing}")

    def test_evaluation_not_in_a_training_folder(self, tiny_run: Run) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config_of(tiny_run), tiny_run.checkpoint, tiny_run.work_dir)
        one_line_of(caught, str(tiny_run.work_dir), "choose another --work-dir")

    @pytest.mark.parametrize("verb", ["train", "evaluate"])
    def test_a_file_is_no_folder(self, verb: str, tiny_run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        arguments = [tiny_run.checkpoint] if verb == "evaluate" else []
        with pytest.raises(TwinsError) as caught:
            getattr(engine, verb)(config_of(tiny_run), *arguments, tmp_path / "file")
        one_line_of(caught, str(tmp_path / "file"), "is a file")

    def test_load_from_is_strict(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.fpn_channels=16"])
        config.load_from = str(tiny_run.checkpoint)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line_of(caught, str(tiny_run.checkpoint), "another model", "fpn")

    def test_the_resolved_config_starts_afresh(self, tiny_run: Run, tmp_path: Path) -> None:
        """Values that a run adds to its config (for torchrun and resuming) do not affect the next run."""
        config = config_of(tiny_run)
        config.launcher, config.resume = "pytorch", True
        config.train_cfg.max_epochs = 1
        runner = engine.train(config, tmp_path / "run")
        assert runner.iter == len(runner.train_dataloader)  # it started at the first iteration
