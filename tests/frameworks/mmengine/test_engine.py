"""Configs are checked before they run; checkpoints are plain, whole and resumable; what doesn't fit is refused."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_fixtures import snapshot
from detection_fixtures import CONFIGS, Run, read_scalars, write_config
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from twins_dense.atomic import write_atomically
from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.checkpoints import PlainCheckpointHook
from twins_dense.frameworks.mmengine.engine import load_config, set_data_root, set_skip_bad
from twins_dense.frameworks.mmengine.runner import load_model
from twins_dense.frameworks.mmengine.samplers import SeededSampler

SMALL = CONFIGS / "mask_rcnn_svt_small_1x.py"


def one_line(caught: pytest.ExceptionInfo[TwinsError], *parts: str) -> str:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


_numbers = itertools.count()


def config_of(run: Run, overrides: Sequence[str] = ()) -> Config:
    """The config of a run under a name of its own: MMEngine tells runs in one process apart by name and second."""
    config = load_config(run.config, overrides)
    config.experiment_name = f"test_engine_{next(_numbers)}"
    return config


class Malicious:
    """Pickled, it is a command that makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


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


class TestLoadConfig:
    @pytest.mark.parametrize("name", ["nothing.py", ""])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(tmp_path / name)
        one_line(caught, str(tmp_path / name), "no such file")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model = dict(\n", "SyntaxError"),
            ("model = dict(a=1 / 0)\n", "ZeroDivisionError"),
            ("_base_ = 'not_there.py'\n", "not_there.py"),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(TwinsError) as caught:
            load_config(path)
        one_line(caught, str(path), "cannot be read", words)

    def test_unknown_key(self, tmp_path: Path) -> None:
        path = tmp_path / "typo.py"
        path.write_text(f"_base_ = {str(SMALL)!r}\noptim_wraper = dict(type='OptimWrapper')\n")
        with pytest.raises(TwinsError) as caught:
            load_config(path)
        one_line(caught, str(path), "unknown key 'optim_wraper': did you mean 'optim_wrapper'?", "underscore")

    def test_own_keys_begin_with_an_underscore(self, tmp_path: Path) -> None:
        path = tmp_path / "own.py"
        path.write_text(f"_base_ = {str(SMALL)!r}\n_sizes = (1, 2)\n")
        assert load_config(path)._sizes == (1, 2)

    @pytest.mark.parametrize(
        ("override", "get", "expected"),
        [
            ("optim_wrapper.optimizer.lr=3e-5", lambda c: c.optim_wrapper.optimizer.lr, 3e-5),
            ("model.min_size=[480, 800]", lambda c: c.model.min_size, [480, 800]),
            ("model.backbone.weights=a/b=c.pth", lambda c: c.model.backbone.weights, "a/b=c.pth"),
            ("model.backbone.weights=None", lambda c: c.model.backbone.weights, None),
            ("param_scheduler.0.end=7", lambda c: c.param_scheduler[0].end, 7),
            ("param_scheduler.1.milestones.1=9", lambda c: c.param_scheduler[1].milestones, [8, 9]),
            (
                "train_dataloader.dataset.transforms.0.p=0",
                lambda c: c.train_dataloader.dataset.transforms[0].p,
                0,
            ),
        ],
    )
    def test_override(self, override: str, get: Any, expected: Any) -> None:
        before, after = load_config(SMALL), load_config(SMALL, [override])
        assert get(before) != expected or expected is None
        assert get(after) == expected
        # The other scheduler, for example, is still there.
        assert len(after.param_scheduler) == 2 and after.param_scheduler[1].type == "MultiStepLR"
        assert after.model.type == before.model.type

    def test_the_last_override_counts(self) -> None:
        assert load_config(SMALL, ["model.num_classes=3", "model.num_classes=5"]).model.num_classes == 5

    @pytest.mark.parametrize("override", ["model.num_classes", "", "=3", "--foo"])
    def test_malformed_override(self, override: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(SMALL, [override])
        one_line(caught, repr(override), "key=value")

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("model.num_clases=3", "model has no 'num_clases': did you mean 'num_classes'?"),
            ("modl.num_classes=3", "the config has no 'modl': did you mean 'model'?"),
            ("optim_wrapper.optimizer.lr.x=3", "optim_wrapper.optimizer.lr has no 'x'"),
            ("param_scheduler.2.end=3", "param_scheduler has no '2': known are 0, 1"),
            ("param_scheduler.first.end=3", "param_scheduler has no 'first'"),
            ("param_scheduler.-1.end=3", "param_scheduler has no '-1'"),
            ("model.backbone.zzz=1", "model.backbone has no 'zzz': known are variant, window_padding"),
        ],
    )
    def test_unknown_override(self, override: str, words: str) -> None:
        with pytest.raises(TwinsError) as caught:
            load_config(SMALL, [override])
        one_line(caught, repr(override), words)


def test_set_data_root_and_skip_bad() -> None:
    config = load_config(SMALL)
    config.test_dataloader = config.val_dataloader.copy()
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {"data/coco"}
    assert not any(loader.dataset.skip_bad for loader in loaders)
    set_data_root(config, Path("/else/where"))
    set_skip_bad(config)
    assert {loader.dataset.data_root for loader in loaders} == {"/else/where"}
    assert all(loader.dataset.skip_bad for loader in loaders)


class TestWriteAtomically:
    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.bin"
        for content in (b"first", b"second, longer"):
            write_atomically(path, content)
            assert path.read_bytes() == content
        assert [child.name for child in path.parent.iterdir()] == ["file.bin"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")
        whole = Path.write_bytes

        def half(self: Path, content: bytes) -> int:
            whole(self, content[: len(content) // 2])
            raise OSError("disk full")

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new content")
        assert snapshot(tmp_path) == {"file.bin": b"old"}

    def test_a_kill_before_the_renaming_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")

        def killed(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new content")
        assert snapshot(tmp_path) == {"file.bin": b"old"}


class TestSeededSampler:
    @staticmethod
    def drawn(seed: int = 0, epoch: int = 0, shuffle: bool = True, size: int = 11) -> list[tuple[int, int]]:
        sampler = SeededSampler(range(size), shuffle=shuffle, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    def test_repeatable(self) -> None:
        assert self.drawn() == self.drawn()
        assert sorted(index for index, _ in self.drawn()) == list(range(11))

    def test_every_index_epoch_and_run_has_seeds_of_its_own(self) -> None:
        draws = [self.drawn(seed, epoch) for seed in range(3) for epoch in range(3)]
        seeds = {seed for draw in draws for _, seed in draw}
        assert len(seeds) == 9 * 11
        assert all(0 <= seed < 2**63 for seed in seeds)
        orders = [tuple(index for index, _ in self.drawn(epoch=epoch)) for epoch in range(4)]
        assert len(set(orders)) == 4

    def test_seeds_don_t_depend_on_the_order(self) -> None:
        assert dict(self.drawn(shuffle=True)) == dict(self.drawn(shuffle=False))
        assert [index for index, _ in self.drawn(shuffle=False)] == list(range(11))


class TestCheckpoint:
    def test_nothing_but_tensors_and_plain_python(self, tiny_run: Run) -> None:
        for epoch in (1, 2):
            checkpoint = torch.load(tiny_run.work_dir / f"epoch_{epoch}.pth", weights_only=True)
            assert {"meta", "state_dict", "optimizer", "param_schedulers", "message_hub"} <= checkpoint.keys()
            assert checkpoint["meta"]["epoch"] == epoch and checkpoint["meta"]["iter"] == 4 * epoch
        assert list(checkpoint["meta"]["dataset_meta"]["classes"]) == ["circle", "rectangle", "triangle"]
        assert list(checkpoint["meta"]["dataset_meta"]["category_ids"]) == [1, 2, 5]

    def test_what_a_run_leaves(self, tiny_run: Run) -> None:
        names = {path.name for path in tiny_run.work_dir.iterdir()}
        assert {"epoch_1.pth", "epoch_2.pth", "last_checkpoint", "metrics.json", "tiny.py"} <= names
        assert not [name for name in names if name.startswith(".")]
        assert len(names) == 6  # and the folder with the log
        assert Path((tiny_run.work_dir / "last_checkpoint").read_text()).name == "epoch_2.pth"
        content = json.loads((tiny_run.work_dir / "metrics.json").read_text())
        assert (content["epoch"], content["iter"]) == (2, 8)
        assert {"coco/bbox_AP", "coco/segm_AP50"} <= content["metrics"].keys()
        resolved = load_config(tiny_run.work_dir / "tiny.py")
        assert resolved.model == load_config(tiny_run.config).model

    @pytest.mark.parametrize("listed", [False, True])
    def test_every_run_has_the_hooks_that_it_needs_once(self, toy_data: Path, tmp_path: Path, listed: bool) -> None:
        needed = ["IterationSeedHook", "PlainCheckpointHook", "MetricsFileHook"]
        more = f"custom_hooks = {[{'type': name} for name in needed] if listed else None}\n"
        config = load_config(write_config(tmp_path / "own.py", toy_data, more=more), ["train_cfg.max_epochs=1"])
        runner = engine.train(config, tmp_path / "run")
        names = [type(hook).__name__ for hook in runner.hooks]
        assert [names.count(name) for name in (*needed, "FiniteLossHook", "ProgressBarHook")] == [1] * 5
        (checkpoint,) = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        assert checkpoint.backend_args == {"backend": "atomic"}

    def test_the_log_has_no_notices_about_mmengine_itself(self, tiny_run: Run) -> None:
        (log,) = tiny_run.work_dir.glob("*/*.log")
        assert "Checkpoints will be saved to" in log.read_text() and "will be deprecated" not in log.read_text()

    def test_histories_survive(self) -> None:
        """The hook's form of logged values and back."""
        history = HistoryBuffer([1.5, 2.5, 3.5], [1, 2, 1])
        hub: dict[str, Any] = {"log_scalars": {"train/loss": history}, "runtime_info": {}}
        checkpoint: dict[str, Any] = {"message_hub": hub, "meta": {}}
        hook = PlainCheckpointHook()
        hook.before_save_checkpoint(SimpleNamespace(train_dataloader=SimpleNamespace(batch_size=2)), checkpoint)
        assert checkpoint["meta"] == {"total_batch_size": 2}
        plain = checkpoint["message_hub"]["log_scalars"]["train/loss"]
        assert [type(part) for part in plain] == [torch.Tensor, torch.Tensor]
        hook.after_load_checkpoint(None, checkpoint)
        found = checkpoint["message_hub"]["log_scalars"]["train/loss"]
        assert isinstance(found, HistoryBuffer)
        assert [part.tolist() for part in found.data] == [[1.5, 2.5, 3.5], [1, 2, 1]]
        assert found.mean(2) == pytest.approx((2.5 + 3.5) / (2 + 1))

    def test_mmengine_reads_it_too(self, tiny_run: Run) -> None:
        assert "state_dict" in CheckpointLoader.load_checkpoint(str(tiny_run.checkpoint), map_location="cpu")


class TestLearningRate:
    def test_scaled_with_the_batch_size(self, tiny_run: Run) -> None:
        """1e-3 for 16 images; here 2, and a warm-up from 0.01 over 6 iterations (in 5 equal steps)."""
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
        one_line(caught, str(tiny_run.work_dir), "--resume", "--work-dir")
        assert snapshot(tiny_run.work_dir) == before

    def test_nothing_to_resume(self, tiny_run: Run, tmp_path: Path) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run), tmp_path / "none", resume=True)
        one_line(caught, str(tmp_path / "none"), "no run to resume", "without --resume")
        assert not (tmp_path / "none").exists()

    def test_other_number_of_classes(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.num_classes=5"])
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line(caught, "3 categories", "5 classes", "model.num_classes=3")

    def test_resume_with_another_model(self, tiny_run: Run, tmp_path: Path) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, ["model.fpn_channels=16"]), tmp_path / "run", resume=True)
        one_line(caught, str(tmp_path / "run" / "epoch_2.pth"), "another model", "(16, ", "(32, ")
        assert snapshot(tmp_path / "run") == before

    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_resume_from_a_broken_checkpoint(self, tiny_run: Run, tmp_path: Path, damage: str) -> None:
        """The folder was moved, too: it is its own checkpoint that is read."""
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        last = tmp_path / "run" / "epoch_2.pth"
        last.unlink() if damage == "gone" else last.write_bytes(last.read_bytes()[:5000])
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run), tmp_path / "run", resume=True)
        one_line(caught, str(tmp_path / "run"), "epoch_2.pth")
        assert snapshot(tmp_path / "run") == before

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("train_dataloader.batch_size=1", ("batch_size=1: ", "2 images per iteration")),
            ("train_cfg.max_epochs=1", ("train_cfg.max_epochs=1", "has done 2")),
        ],
    )
    def test_resume_that_would_not_go_on(
        self, tiny_run: Run, tmp_path: Path, override: str, parts: tuple[str, ...]
    ) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = snapshot(tmp_path / "run")
        with pytest.raises(TwinsError) as caught:
            engine.train(config_of(tiny_run, [override]), tmp_path / "run", resume=True)
        one_line(caught, *parts)
        assert snapshot(tmp_path / "run") == before

    def test_resume_of_a_finished_run_loses_nothing(self, tiny_run: Run, tmp_path: Path) -> None:
        shutil.copytree(tiny_run.work_dir, tmp_path / "run")
        before = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert before["metrics"]
        engine.train(config_of(tiny_run), tmp_path / "run", resume=True)
        assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == before

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    def test_losses_that_are_not_finite(self, kind: str, toy_data: Path, tmp_path: Path) -> None:
        """They stop the run; the checkpoints from before stay, and nothing is in them that isn't finite."""
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
        one_line(caught, "iteration 1: not finite: ", "loss_", "checkpoints written so far are kept", "optimizer.lr")
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
        one_line(caught, override.partition("=")[0].rpartition(".")[2])
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet"])
    def test_both_detectors_learn(self, kind: str, toy_data: Path, tmp_path: Path) -> None:
        """Their losses fall over 2 epochs of 4 iterations on 8 images."""
        more = ""
        if kind == "TwinsRetinaNet":
            more = "train_dataloader['dataset']['with_masks'] = False\nval_evaluator['iou_types'] = ('bbox',)\n"
        path = write_config(tmp_path / f"learn_{kind}.py", toy_data, epochs=2, more=more, kind=kind)
        runner = engine.train(load_config(path, ["optim_wrapper.optimizer.lr=8e-3"]), tmp_path / "run")
        losses = [record["loss"] for record in read_scalars(tmp_path / "run")[0] if "loss" in record]
        assert len(losses) == 8 and all(math.isfinite(loss) and loss > 0 for loss in losses)
        assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
        assert len(metrics) == (24 if kind == "TwinsMaskRCNN" else 12)
        torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
        assert type(runner.model).__name__ == kind

    def test_unknown_component(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.type=TwinsMaskRCN"])
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line(caught, str(tiny_run.config), "TwinsMaskRCN")

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
        one_line(caught)


class TestEvaluateAndLoad:
    def test_bad_checkpoint(self, bad_checkpoint: Path, tiny_run: Run, tmp_path: Path) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config_of(tiny_run), bad_checkpoint, tmp_path / "out")
        one_line(caught, str(bad_checkpoint))
        assert not (tmp_path / "out" / "metrics.json").exists()
        with pytest.raises(TwinsError) as caught:
            load_model(config_of(tiny_run), bad_checkpoint)
        one_line(caught, str(bad_checkpoint))

    def test_model_without_its_head(self, tiny_run: Run, tmp_path: Path) -> None:
        """Strict: a missing entry and one without a place are both named."""
        checkpoint = torch.load(tiny_run.checkpoint, weights_only=True)
        state = checkpoint["state_dict"]
        state["detector.other"] = state.pop("detector.roi_heads.box_predictor.cls_score.bias")
        torch.save(checkpoint, tmp_path / "renamed.pth")
        with pytest.raises(TwinsError) as caught:
            load_model(config_of(tiny_run), tmp_path / "renamed.pth")
        one_line(caught, "another model", "cls_score.bias is missing", "detector.other (4,) has no place")

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
        one_line(caught, "instances_val2017.json", "1 zebra", "1 circle", "the training data")

    def test_evaluation_data_with_other_classes(self, tiny_run: Run, data: Path, tmp_path: Path) -> None:
        break_data(data, "val", rename_first_category)
        config = config_of(tiny_run)
        set_data_root(config, data)
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config, tiny_run.checkpoint, tmp_path / "out")
        one_line(caught, "instances_val2017.json", "1 zebra", "1 circle", str(tiny_run.checkpoint))

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


class TestWhereARunMayStart:
    @pytest.mark.parametrize("missing", ["model", "train_dataloader"])
    def test_half_a_config(self, missing: str, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run)
        config.pop(missing)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line(caught, str(tiny_run.config), f"has no {missing}")

    def test_evaluation_not_in_a_training_folder(self, tiny_run: Run) -> None:
        with pytest.raises(TwinsError) as caught:
            engine.evaluate(config_of(tiny_run), tiny_run.checkpoint, tiny_run.work_dir)
        one_line(caught, str(tiny_run.work_dir), "choose another --work-dir")

    @pytest.mark.parametrize("verb", ["train", "evaluate"])
    def test_a_file_is_no_folder(self, verb: str, tiny_run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        arguments = [tiny_run.checkpoint] if verb == "evaluate" else []
        with pytest.raises(TwinsError) as caught:
            getattr(engine, verb)(config_of(tiny_run), *arguments, tmp_path / "file")
        one_line(caught, str(tmp_path / "file"), "is a file")

    def test_load_from_is_strict(self, tiny_run: Run, tmp_path: Path) -> None:
        config = config_of(tiny_run, ["model.fpn_channels=16"])
        config.load_from = str(tiny_run.checkpoint)
        with pytest.raises(TwinsError) as caught:
            engine.train(config, tmp_path / "run")
        one_line(caught, str(tiny_run.checkpoint), "another model", "fpn")

    def test_the_resolved_config_starts_afresh(self, tiny_run: Run, tmp_path: Path) -> None:
        """What a run leaves of itself in its config (torchrun, resuming) doesn't reach the next run."""
        config = config_of(tiny_run)
        config.launcher, config.resume = "pytorch", True
        config.train_cfg.max_epochs = 1
        runner = engine.train(config, tmp_path / "run")
        assert runner.iter == len(runner.train_dataloader)  # from the first iteration on
